"""`python -m router`: the flags of the router process."""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from gateway.limits import described_limits, parse_limits
from router.cors import parse_cors
from router.listeners import ConfigurationError
from router.server import MAX_STORED_BYTES, RESPONSE_TTL_S, Settings, serve

Option = typer.Option


def main(
    model: Annotated[Path, Option(help="Model directory in Hugging Face's layout.")],
    scheduler: Annotated[
        str, Option(help="Scheduler to dial: HOST:PORT or unix:/PATH.", metavar="ADDR")
    ] = "127.0.0.1:50051",
    served_model_name: Annotated[
        str | None, Option(help="Name clients ask for.", show_default="the directory's name")
    ] = None,
    chat_template: Annotated[
        Path | None,
        Option(help="Jinja file to use in place of the model's own chat template."),
    ] = None,
    tool_call_parser: Annotated[
        str,
        Option(
            help="How the model writes calls of tools: hermes, llama3_json, mistral, pythonic or "
            "none; auto: as its chat template shows.",
            metavar="FORMAT",
        ),
    ] = "auto",
    reasoning_parser: Annotated[
        str,
        Option(
            help="How the model sets its thoughts apart: think, mistral or none; auto: as its chat "
            "template shows.",
            metavar="FORMAT",
        ),
    ] = "auto",
    host: Annotated[str, Option(help="Address to serve HTTP on.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to serve HTTP on; 0: any free one.", min=0)] = 8000,
    uds: Annotated[
        Path | None, Option(help="Unix socket to serve HTTP on, instead of host and port.")
    ] = None,
    grpc_port: Annotated[
        int, Option(help="Port to serve gRPC on, on the same host; 0: any free one.", min=0)
    ] = 50050,
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
    metrics_port: Annotated[
        int | None,
        Option(
            help="A port on loopback where this process answers beside --port; for /metrics, "
            "/ready and /health of it alone where ports are shared. 0: any free one.",
            min=0,
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        Option(
            envvar="QUIRE_API_KEY",
            help="Clients must send it as a bearer token, or as x-api-key, to every route but "
            "/health and /ready.",
        ),
    ] = None,
    max_body_bytes: Annotated[int, Option(help="Largest request body, in bytes.", min=1024)] = 8
    * 1024
    * 1024,
    limit: Annotated[
        list[str] | None,
        Option(
            help="The most that one request may ask for; may be given several times. By default: "
            f"{described_limits()}.",
            metavar="NAME=VALUE",
            show_default=False,
        ),
    ] = None,
    max_in_flight: Annotated[
        int, Option(help="Requests in flight beyond which new ones get 429.", min=1)
    ] = 1024,
    drain_timeout: Annotated[
        float, Option(help="Seconds that running requests get when told to end.", min=0)
    ] = 30.0,
    scheduler_timeout: Annotated[
        float,
        Option(help="Seconds that running requests wait for a lost scheduler or worker.", min=0),
    ] = 120.0,
    seed: Annotated[
        int | None,
        Option(
            help="Requests that bring no seed get theirs from a generator seeded with this: the "
            "same again for the same order of arrival. Without it they are random.",
            show_default=False,
        ),
    ] = None,
    max_stored_bytes: Annotated[
        int | None,
        Option(
            help="Bytes of /v1/responses that are kept for `previous_response_id`; the oldest go "
            "first. 0 keeps none: with --reuse-port it must be 0, and is.",
            min=0,
            show_default=str(MAX_STORED_BYTES),
        ),
    ] = None,
    response_ttl: Annotated[
        float, Option(help="Seconds that such a response is kept.", min=0)
    ] = RESPONSE_TTL_S,
    allowed_origins: Annotated[
        str | None,
        Option(
            help="Origins whose pages may ask from a browser, like https://app.example or '*'; "
            "several as a JSON array or with commas between them. Without it no page may.",
            metavar="ORIGINS",
            show_default=False,
        ),
    ] = None,
    allowed_methods: Annotated[
        str | None, Option(help="Methods they may use.", metavar="METHODS", show_default="all")
    ] = None,
    allowed_headers: Annotated[
        str | None, Option(help="Headers they may send.", metavar="HEADERS", show_default="all")
    ] = None,
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
    same scheduler.
    """
    _configure_log()
    try:
        if api_key == "":
            raise ValueError("the API key is empty; leave it out to serve without one")
        limits = parse_limits(limit or ())
        cors = parse_cors(
            allowed_origins, allowed_methods, allowed_headers, credentials=allow_credentials
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if max_stored_bytes is None:
        max_stored_bytes = 0 if reuse_port else MAX_STORED_BYTES
    try:
        settings = Settings(
            model=model,
            scheduler=scheduler,
            served_model_name=served_model_name,
            chat_template=chat_template,
            tool_call_parser=tool_call_parser,
            reasoning_parser=reasoning_parser,
            host=host,
            port=port,
            uds=uds,
            grpc_listen=grpc_listen or f"{f'[{host}]' if ':' in host else host}:{grpc_port}",
            api_key=api_key,
            max_body_bytes=max_body_bytes,
            max_in_flight=max_in_flight,
            drain_timeout_s=drain_timeout,
            scheduler_timeout_s=scheduler_timeout,
            seed=seed,
            max_stored_bytes=max_stored_bytes,
            response_ttl_s=response_ttl,
            cors=cors,
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
    typer.run(main)
