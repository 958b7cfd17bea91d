"""How a device runner starts, where the device is the host: all is real but what is measured."""

import pytest
import torch

from kernels.ops import DEVICE_STEP_REFERENCE
from tests.worker.runners import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    NUM_SLOTS,
    generate,
    make_host_runner,
    tenants,
)
from worker.device_start import DeviceStart, bucket_range, phases
from worker.lane import HostLane
from worker.ledger import Claims
from worker.loader import LoadedModel
from worker.plans import Sampling
from worker.sizes import Sizes, default_buckets


def make_start(loaded: LoadedModel, buckets: tuple[int, ...]) -> DeviceStart:
    sizes = Sizes(BLOCK_SIZE, NUM_SLOTS, max_num_batched_tokens=64, graph_buckets=buckets)
    return DeviceStart(loaded, sizes, HostLane(), DEVICE_STEP_REFERENCE, torch.device("cpu"))


@pytest.mark.parametrize("buckets", [(), (4, 16)])
def test_what_runs_at_the_start_leaves_no_trace(
    tiny_model: LoadedModel, buckets: tuple[int, ...]
) -> None:
    start = make_start(tiny_model, buckets)
    assert start.rehearse(spared_bytes=77.5) == Claims(0, 0, 77)
    runner = start.start(NUM_BLOCKS)
    assert runner.graph_buckets == buckets
    assert runner.num_live == 0
    sequences = list(tenants(Sampling(temperature=0.7)).values())
    expected = generate(make_host_runner(tiny_model), sequences, chunk=50)
    assert generate(runner, sequences, chunk=50) == expected
    runner.close()
    assert list(start.seconds) == ["rehearsal", "tables and largest step", "graphs"]


def test_buckets_are_fine_where_steps_are_short() -> None:
    assert default_buckets(1) == (1,)
    assert default_buckets(6) == (1, 2, 4, 6)
    assert default_buckets(40) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert default_buckets(400)[-4:] == (256, 320, 384, 400)
    assert default_buckets(256)[-1] == 256


def test_people_are_told_what_took_how_long() -> None:
    assert phases({"weights": 1.26, "graphs": 0.04}) == "weights 1.3 s, graphs 0.0 s"
    assert bucket_range(()) == "none"
    assert bucket_range((1, 2, 64)) == "3, for 1 to 64 decode rows"
