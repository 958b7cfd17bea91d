"""The logits of a step: in the model's own number format, and once for all captured steps."""

import math
from pathlib import Path

import pytest
import torch

from kernels.batch import AttentionBatch
from kernels.linear import linear, linear_into, pack_weight
from tests.worker.builders import plan
from tests.worker.runners import generate, make_device_runner, make_host_runner, run, tenants
from worker.executor import Model
from worker.kv_cache import KVCache
from worker.loader import LoadedModel, load_model
from worker.parallel import side_by_side
from worker.plans import Sampling

CPU = torch.device("cpu")


class Noted:
    """A model that notes its logits, and where it was told to leave them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.logits_made: list[torch.Tensor] = []
        self.places: list[torch.Tensor] = []

    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = self._model.forward(batch, kv, out)
        self.logits_made.append(logits)
        if out is not None:
            assert logits.data_ptr() == out.data_ptr()
            self.places.append(out)
        return logits

    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        return self._model.hidden(batch, kv)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden)


@pytest.fixture(scope="module")
def half_model(tiny_directory: Path) -> LoadedModel:
    """The small model in a format of 16 bits."""
    return load_model(tiny_directory, dtype="bfloat16", device=CPU)


def test_captured_steps_leave_their_logits_in_one_place(tiny_model: LoadedModel) -> None:
    noted = Noted(tiny_model.model)
    runner = make_device_runner(tiny_model, noted, buckets=(4, 8, 16))
    sequences = list(tenants(Sampling()).values())
    expected = generate(make_host_runner(tiny_model), sequences, chunk=50)
    assert generate(runner, sequences, chunk=50) == expected
    assert {len(place) for place in noted.places} == {4, 8, 16}
    assert len({place.untyped_storage().data_ptr() for place in noted.places}) == 1
    largest = max(noted.places, key=len)
    assert largest.untyped_storage().nbytes() == largest.numel() * largest.dtype.itemsize
    runner.close()


def test_no_logits_are_widened_before_somebody_asks(half_model: LoadedModel) -> None:
    noted = Noted(half_model.model)
    runner = make_device_runner(half_model, noted, buckets=(4,))
    generate(runner, list(tenants(Sampling()).values()), chunk=50)
    assert {logits.dtype for logits in noted.logits_made} == {torch.bfloat16}
    runner.close()


def test_logprobs_of_narrow_logits_are_of_32_bits(half_model: LoadedModel) -> None:
    noted = Noted(half_model.model)
    admitted = tenants(Sampling(num_logprobs=3))[0]
    first = plan(admit=[admitted], chunks=[(0, 0, len(admitted.token_ids))])
    device = make_device_runner(half_model, noted)
    for runner in (make_host_runner(half_model, noted), device):
        result = run(runner, first)
        assert result.logprobs is not None
        exact = noted.logits_made[-1].double().log_softmax(dim=1)[0, result.token_id[0]]
        told = float(result.logprobs.logprob[0])
        assert math.isclose(told, exact, abs_tol=1e-5)
        assert abs(float(exact.bfloat16()) - told) > 1e-5, "16 bits would have told the same"
    device.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_has_the_same_bits_wherever_it_goes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 48, generator=generator).to(dtype)
    weight = pack_weight(torch.randn(101, 48, generator=generator).to(dtype))
    out = torch.full((7, 101), math.nan, dtype=dtype)
    assert linear_into(x, weight, out[:5]).data_ptr() == out.data_ptr()
    assert torch.equal(out[:5], linear(x, weight))
    assert out[5:].isnan().all()


@pytest.mark.parametrize("width", [1, 4, 5, 9, 12])
def test_the_parts_of_a_vocabulary_are_joined_without_their_padding(width: int) -> None:
    whole = torch.arange(24.0).reshape(2, 12)
    parts = [whole[:, at : at + 4].contiguous() for at in (0, 4, 8)]
    assert torch.equal(side_by_side(parts, width), whole[:, :width])
    out = torch.full((2, width), math.nan)
    assert side_by_side(parts, width, out).data_ptr() == out.data_ptr()
    assert torch.equal(out, whole[:, :width])
