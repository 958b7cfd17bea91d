"""`python -m scheduler`: the command line of the scheduler process."""

import logging
import os
import secrets
import sys
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from scheduler.core.config import CoreConfig

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Policy(StrEnum):
    """In which order sequences are served."""

    FCFS = "fcfs"
    PRIORITY = "priority"


_DEFAULT = CoreConfig(hash_seed=b"")
_DEFAULT_POLICY = Policy(_DEFAULT.policy)


@app.command()
def main(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDR",
            help="Where routers and workers dial: HOST:PORT or unix:PATH. May be repeated. "
            r"Port 0 takes any free one. \[default: 127.0.0.1:50051]",
            show_default=False,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, help="Sequences running at once on one replica, at most.")
    ] = _DEFAULT.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens computed in one step of one replica, at most.")
    ] = _DEFAULT.max_num_batched_tokens,
    scheduling_policy: Annotated[
        Policy, typer.Option(help="First come first served, or by priority with aging.")
    ] = _DEFAULT_POLICY,
    priority_aging: Annotated[
        float,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help="With the priority policy: the wait that weighs as much as one step of priority.",
        ),
    ] = _DEFAULT.aging_s,
    enable_prefix_caching: Annotated[
        bool, typer.Option(help="Reuse the KV blocks of prompts that begin alike.")
    ] = _DEFAULT.enable_prefix_caching,
    watermark: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.99, help="Share of blocks that admission leaves to running sequences."
        ),
    ] = _DEFAULT.watermark,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Sequences waiting, beyond which requests are refused.")
    ] = _DEFAULT.max_queued,
    max_crashes: Annotated[
        int,
        typer.Option(
            min=0,
            help="Lost workers that one request may have been running on; one more ends it.",
        ),
    ] = _DEFAULT.max_crashes,
    step_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="A replica whose step takes longer than this, and 20 times longer than expected, "
            "is given up and its sequences computed elsewhere.",
        ),
    ] = 60.0,
    drain_timeout: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="After SIGTERM, how long accepted requests may go on.",
        ),
    ] = 30.0,
    metrics_host: Annotated[
        str, typer.Option(help="Address that /metrics is served on.")
    ] = "127.0.0.1",
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of /metrics; 0 takes any free one.")
    ] = 9401,
) -> None:
    """Runs the scheduler of one cell: it owns every block table and every batching decision.

    Routers and workers dial it. It knows token ids only: no model, no text, no GPU.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC loads: its errors come to us
    import uvloop

    from scheduler.process import ProcessConfig, run
    from scheduler.service import PortTaken

    _log_to_stderr()
    try:
        config = ProcessConfig(
            listen=tuple(listen or ["127.0.0.1:50051"]),
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            drain_timeout_s=drain_timeout,
            core=CoreConfig(
                hash_seed=secrets.token_bytes(32),
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                enable_prefix_caching=enable_prefix_caching,
                policy=scheduling_policy.value,
                aging_s=priority_aging,
                watermark=watermark,
                max_queued=max_queued,
                max_crashes=max_crashes,
            ),
            step_timeout_s=step_timeout,
        )
    except ValueError as error:
        _refuse(error)
    try:
        uvloop.run(run(config))
    except PortTaken as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    """Ends with one line, and the code that says that a restart would not help."""
    sys.stderr.write(f"error: {error}\n")
    raise typer.Exit(2) from error


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s scheduler %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.addLevelName(level, logging.getLevelName(level).lower())


if __name__ == "__main__":
    app()
