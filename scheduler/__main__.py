"""`python -m scheduler`: the command line of the scheduler process."""

import logging
import os
import secrets
import sys
from typing import Annotated, Literal, NoReturn

import typer

from protos import flags
from protos.command_line import run
from protos.trust import Trust
from scheduler.core.config import CoreConfig

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


_CORE = CoreConfig(hash_seed=b"")
_LISTEN = "127.0.0.1:50051"


@app.command()
def main(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDR",
            help="Where routers and workers dial: HOST:PORT or unix:PATH. May be repeated. "
            "Port 0 takes any free one.",
            show_default=_LISTEN,
        ),
    ] = None,
    admin_listen: Annotated[str | None, flags.ADMIN_LISTEN.typer()] = None,
    max_num_seqs: Annotated[int, flags.MAX_NUM_SEQS.typer()] = _CORE.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, flags.MAX_NUM_BATCHED_TOKENS.typer()
    ] = _CORE.max_num_batched_tokens,
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"], flags.SCHEDULING_POLICY.typer()
    ] = _CORE.policy,
    priority_aging: Annotated[float, flags.PRIORITY_AGING.typer()] = _CORE.aging_s,
    enable_prefix_caching: Annotated[
        bool, typer.Option(help="Reuse the KV blocks of prompts that begin alike.")
    ] = _CORE.enable_prefix_caching,
    watermark: Annotated[float, flags.WATERMARK.typer()] = _CORE.watermark,
    max_queued: Annotated[int, flags.MAX_QUEUED.typer()] = _CORE.max_queued,
    max_queued_tokens: Annotated[int, flags.MAX_QUEUED_TOKENS.typer()] = _CORE.max_queued_tokens,
    max_losses: Annotated[int, flags.MAX_LOSSES.typer()] = _CORE.max_losses,
    speculative_ngram: Annotated[
        str, flags.SPECULATIVE_NGRAM.typer()
    ] = flags.SPECULATIVE_NGRAM.default,
    step_timeout: Annotated[float, flags.STEP_TIMEOUT.typer()] = flags.STEP_TIMEOUT.default,
    drain_timeout: Annotated[float, flags.DRAIN_TIMEOUT.typer()] = flags.DRAIN_TIMEOUT.default,
    cluster_token_file: Annotated[str | None, flags.CLUSTER_TOKEN_FILE.typer()] = None,
    tls_cert: Annotated[str | None, flags.TLS_CERT.typer()] = None,
    tls_key: Annotated[str | None, flags.TLS_KEY.typer()] = None,
    tls_ca: Annotated[str | None, flags.TLS_CA.typer()] = None,
    metrics_host: Annotated[str, flags.METRICS_HOST.typer()] = flags.METRICS_HOST.default,
    metrics_port: Annotated[
        int, flags.SCHEDULER_METRICS_PORT.typer()
    ] = flags.SCHEDULER_METRICS_PORT.default,
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
            listen=tuple(listen or [_LISTEN]),
            admin_listen=admin_listen,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            drain_timeout_s=drain_timeout,
            core=CoreConfig(
                hash_seed=secrets.token_bytes(32),
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                enable_prefix_caching=enable_prefix_caching,
                policy=scheduling_policy,
                aging_s=priority_aging,
                watermark=watermark,
                max_queued=max_queued,
                max_queued_tokens=max_queued_tokens,
                max_losses=max_losses,
                max_draft_tokens=_max_draft_tokens(speculative_ngram),
            ),
            step_timeout_s=step_timeout,
            trust=Trust.read(token_file=cluster_token_file, cert=tls_cert, key=tls_key, ca=tls_ca),
        )
    except ValueError as error:
        _refuse(error)
    try:
        uvloop.run(run(config))
    except PortTaken as error:
        _refuse(error)


def _max_draft_tokens(speculative_ngram: str) -> int:
    if speculative_ngram == "auto":
        return _CORE.max_draft_tokens
    return 0 if speculative_ngram == "off" else int(speculative_ngram)


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
    run(app)
