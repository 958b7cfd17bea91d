"""`python -m router`: the flags of the router process."""

import asyncio
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from gateway.cors import parse_cors
from gateway.flags import CHAT_TEMPLATE, REASONING_PARSER, TOOL_CALL_PARSER
from gateway.hosts import exposure as host_exposure
from gateway.hosts import parse_hosts
from gateway.keys import read_keys
from gateway.limits import described_limits, parse_limits
from protos import flags
from protos.command_line import run
from protos.trust import Trust, exposure
from router.listeners import OWN_HOST, ConfigurationError
from router.server import serve
from router.settings import Settings
from router.tls import TlsFiles

app = typer.Typer(add_completion=False)
Option = typer.Option

_log = logging.getLogger("router")


@app.command()
def main(
    model: Annotated[Path, Option(help="Model directory in Hugging Face's layout.")],
    scheduler: Annotated[
        str, Option(help="Scheduler to dial: HOST:PORT or unix:/PATH.", metavar="ADDR")
    ] = "127.0.0.1:50051",
    router_id: Annotated[
        str | None,
        Option(
            help="Names this router to the scheduler, with a random part behind it.",
            metavar="ID",
            show_default="host and process",
        ),
    ] = None,
    cluster_token_file: Annotated[str | None, flags.CLUSTER_TOKEN_FILE.typer()] = None,
    tls_cert: Annotated[str | None, flags.TLS_CERT.typer()] = None,
    tls_key: Annotated[str | None, flags.TLS_KEY.typer()] = None,
    tls_ca: Annotated[str | None, flags.TLS_CA.typer()] = None,
    served_model_name: Annotated[str | None, flags.SERVED_MODEL_NAME.typer()] = None,
    chat_template: Annotated[str | None, CHAT_TEMPLATE.typer()] = None,
    tool_call_parser: Annotated[str, TOOL_CALL_PARSER.typer()] = TOOL_CALL_PARSER.default,
    reasoning_parser: Annotated[str, REASONING_PARSER.typer()] = REASONING_PARSER.default,
    host: Annotated[str, flags.HOST.typer()] = flags.HOST.default,
    port: Annotated[int, flags.PORT.typer()] = flags.PORT.default,
    uds: Annotated[
        Path | None, Option(help="Unix socket to serve HTTP on, instead of host and port.")
    ] = None,
    grpc_port: Annotated[int, flags.GRPC_PORT.typer()] = flags.GRPC_PORT.default,
    grpc_listen: Annotated[
        str | None,
        Option(help="HOST:PORT or unix:/PATH to serve gRPC on, instead.", metavar="ADDR"),
    ] = None,
    reuse_port: Annotated[
        bool,
        Option(
            "--reuse-port",
            help="Share --port and --grpc-port with other routers of this machine that are told "
            "to; new connections are spread over them. Needs --metrics-port.",
        ),
    ] = False,
    metrics_port: Annotated[int | None, flags.ROUTER_METRICS_PORT.typer()] = None,
    api_key: Annotated[
        list[str] | None,
        Option(
            help="Clients must send it as a bearer token, or as x-api-key, to every route but "
            "/health and /ready; may be given several times. Or one in QUIRE_API_KEY.",
            metavar="KEY",
            show_default="none is asked for",
        ),
    ] = None,
    api_key_file: Annotated[str | None, flags.API_KEY_FILE.typer()] = None,
    share_prefix_cache: Annotated[
        bool,
        Option(
            "--share-prefix-cache",
            help="Let requests of all keys find each other's prompts in the prefix cache; else, "
            "with several keys, each has its own.",
        ),
    ] = False,
    ssl_certfile: Annotated[str | None, flags.SSL_CERTFILE.typer()] = None,
    ssl_keyfile: Annotated[str | None, flags.SSL_KEYFILE.typer()] = None,
    ssl_ca_certs: Annotated[str | None, flags.SSL_CA_CERTS.typer()] = None,
    max_body_bytes: Annotated[int, flags.MAX_BODY_BYTES.typer()] = flags.MAX_BODY_BYTES.default,
    limit: Annotated[
        list[str] | None,
        Option(
            help="The most that one request may ask for; may be given several times. By default: "
            f"{described_limits()}.",
            metavar="NAME=VALUE",
            show_default=False,
        ),
    ] = None,
    max_in_flight: Annotated[int, flags.MAX_IN_FLIGHT.typer()] = flags.MAX_IN_FLIGHT.default,
    drain_timeout: Annotated[float, flags.DRAIN_TIMEOUT.typer()] = flags.DRAIN_TIMEOUT.default,
    scheduler_timeout: Annotated[
        float, flags.SCHEDULER_TIMEOUT.typer()
    ] = flags.SCHEDULER_TIMEOUT.default,
    seed: Annotated[int | None, flags.SEED.typer()] = None,
    max_stored_bytes: Annotated[int | None, flags.MAX_STORED_BYTES.typer()] = None,
    response_ttl: Annotated[float, flags.RESPONSE_TTL.typer()] = flags.RESPONSE_TTL.default,
    allowed_hosts: Annotated[str | None, flags.ALLOWED_HOSTS.typer()] = None,
    allowed_origins: Annotated[str | None, flags.ALLOWED_ORIGINS.typer()] = None,
    allowed_methods: Annotated[str | None, flags.ALLOWED_METHODS.typer()] = None,
    allowed_headers: Annotated[str | None, flags.ALLOWED_HEADERS.typer()] = None,
    allow_credentials: Annotated[
        bool,
        Option(
            "--allow-credentials",
            help="They may let the browser add what it holds for this server.",
        ),
    ] = False,
) -> None:
    """Serve OpenAI's API over HTTP, and InferenceService over gRPC.

    Holds no model: dials the scheduler, which owns the workers. Any number of routers may dial the
    same scheduler. At SIGHUP it reads the files of keys and certificates for clients again.
    """
    _configure_log()
    keys_now = partial(read_keys, api_key, api_key_file)
    keys = keys_now()
    tls = TlsFiles.read(ssl_certfile, ssl_keyfile, ssl_ca_certs)
    for flag, path in (
        (flags.API_KEY_FILE, api_key_file),
        (flags.SSL_KEYFILE, tls and tls.keyfile),
    ):
        if path and (warning := exposure(flag.option, path)):
            _log.warning("%s", warning)
    if keys:
        _log.info("clients need one of these keys: %s", ", ".join(keys))
    try:
        limits = parse_limits(limit or ())
        cors = parse_cors(
            allowed_origins, allowed_methods, allowed_headers, credentials=allow_credentials
        )
        # Beside a Unix socket, pages could still reach the port on loopback.
        listens_on = host if uds is None else None if metrics_port is None else OWN_HOST
        hosts = parse_hosts(allowed_hosts, listens_on)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if warning := host_exposure(listens_on, asks_for_keys=bool(keys), speaks_tls=tls is not None):
        _log.warning("%s", warning)
    if max_stored_bytes is None:
        max_stored_bytes = 0 if reuse_port else flags.MAX_STORED_BYTES.default
    try:
        settings = Settings(
            model=model,
            scheduler=scheduler,
            router_id=router_id,
            trust=Trust.read(token_file=cluster_token_file, cert=tls_cert, key=tls_key, ca=tls_ca),
            served_model_name=served_model_name,
            chat_template=Path(chat_template) if chat_template else None,
            tool_call_parser=tool_call_parser,
            reasoning_parser=reasoning_parser,
            host=host,
            port=port,
            uds=uds,
            grpc_listen=grpc_listen or f"{f'[{host}]' if ':' in host else host}:{grpc_port}",
            read_keys=keys_now,
            tls=tls,
            shares_prefixes=share_prefix_cache,
            max_body_bytes=max_body_bytes,
            max_in_flight=max_in_flight,
            drain_timeout_s=drain_timeout,
            scheduler_timeout_s=scheduler_timeout,
            seed=seed,
            max_stored_bytes=max_stored_bytes,
            response_ttl_s=response_ttl,
            cors=cors,
            hosts=hosts,
            limits=limits,
            reuse_port=reuse_port,
            metrics_port=metrics_port,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


def _configure_log() -> None:
    """One plain line per record on standard error."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s router %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.addLevelName(level, logging.getLevelName(level).lower())


if __name__ == "__main__":
    run(app)
