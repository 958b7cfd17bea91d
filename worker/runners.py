"""Which runner a device gets, and the memory it may take.

Where the host reaches the tensors it runs each step to its end (`HostRunner`); where a device works
on its own, steps are launched ahead of their results (`DeviceRunner`). `kernels.ops` knows which.
"""

import logging

import torch

from kernels.ops import select_step
from worker.constraints import Constraints
from worker.device_start import DeviceStart, bucket_range
from worker.executor import Runner
from worker.grammars import Grammars
from worker.host_runner import HostRunner
from worker.kv_cache import KVCache
from worker.lane import make_lane
from worker.ledger import KVRequest, Ledger, settle
from worker.loader import LoadedModel
from worker.loading_progress import FIRST_STEPS, unless_quick
from worker.parallel import Group
from worker.phases import phases
from worker.sampler import Sampler
from worker.sizes import Sizes
from worker.step_state import StepState
from worker.warm_up import warm_up

log = logging.getLogger(__name__)


def start_runner(
    loaded: LoadedModel,
    request: KVRequest,
    sizes: Sizes,
    *,
    device: torch.device,
    utilization: float,
    group: Group,
    grammars: Grammars | None = None,
) -> tuple[Runner, Ledger]:
    """A runner that has computed already, and where the memory went.

    Args:
        loaded: the model.
        request: what the operator asked for KV.
        sizes: how large steps may get.
        device: where the model is.
        utilization: share of a device's memory that may be used, 0 to 1; a CPU's is not ours alone.
        group: the ranks; each gets as many blocks as the one with the fewest.
        grammars: the compiler of the model's grammars; None: none can be served.

    Raises:
        MemoryShortError: KV for one sequence of full length does not fit.
    """
    step_ops = select_step(device, sizes.max_num_seqs, loaded.config.vocab_size)
    if step_ops is None:
        ledger = settle(loaded, request, sizes, device=device)
        ledger = ledger.limited_to(group.least(ledger.num_blocks))
        _show(ledger)
        return _host_runner(loaded, sizes, ledger, device, grammars), ledger
    lane = make_lane(device)
    start = DeviceStart(loaded, sizes, lane, step_ops, device, grammars)
    with unless_quick(FIRST_STEPS):
        claims = start.rehearse(lane.total_bytes() * (1 - utilization))
    ledger = settle(loaded, request, sizes, device=device, claims=claims)
    ledger = ledger.limited_to(group.least(ledger.num_blocks))
    _show(ledger)
    runner = start.start(ledger.num_blocks)
    log.info("on the device: %s", phases(start.seconds))
    log.info("captured steps: %s", bucket_range(runner.graph_buckets))
    return runner, ledger


def _show(ledger: Ledger) -> None:
    for line in ledger.lines():
        log.info("%s", line)


def _host_runner(
    loaded: LoadedModel,
    sizes: Sizes,
    ledger: Ledger,
    device: torch.device,
    grammars: Grammars | None,
) -> HostRunner:
    vocab_size = loaded.config.vocab_size
    runner = HostRunner(
        loaded.model,
        KVCache(loaded.share, ledger.num_blocks, sizes.block_size, loaded.backend.kv_dtype, device),
        StepState(
            max_num_seqs=sizes.max_num_seqs,
            max_model_len=loaded.max_model_len,
            num_blocks=ledger.num_blocks,
            block_size=sizes.block_size,
            vocab_size=vocab_size,
        ),
        Sampler(max_num_seqs=sizes.max_num_seqs, vocab_size=vocab_size),
        Constraints(sizes.max_num_seqs, vocab_size, grammars),
        loaded.pooler(sizes.max_num_seqs, device),
    )
    with unless_quick(FIRST_STEPS):
        warm_up(runner, sizes, max_model_len=loaded.max_model_len, vocab_size=vocab_size)
    return runner
