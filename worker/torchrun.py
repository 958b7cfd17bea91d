"""Starts the ranks of a replica with torchrun, and ends as they did.

torchrun itself ends with code 1 and a table of errors whatever happened. Whoever supervises this
process wants to know whether starting again can help: so a rank's code 2 is this process's, too,
and the ranks' own log says the rest. torchrun is told to start nobody again: what supervises a
single worker supervises ranks just as well.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence

_NOT_CURABLE = 2


def run_ranks(num_ranks: int, worker_arguments: Sequence[str]) -> int:
    """Runs `python -m worker` as this many ranks until all end; returns the exit code."""
    logging.disable()  # torchrun's: the ranks say what there is to say
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else it warns; each rank sets its own
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="quire-torchrun-") as log_dir:
        arguments = [
            "--standalone",
            "--local-addr=127.0.0.1",
            f"--nproc-per-node={num_ranks}",
            "--max-restarts=0",
            "--monitor-interval=0.1",
            f"--log-dir={log_dir}",
            "--no-python",
            *_worker_command(),
            *worker_arguments,
        ]
        try:
            run.run(run.parse_args(arguments))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            return _NOT_CURABLE if _NOT_CURABLE in codes else 1
        except SignalException:
            pass  # it was told to end, has told the ranks, and they have gone
    return 0


def _worker_command() -> list[str]:
    return [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "worker"]
