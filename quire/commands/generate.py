"""`quire generate`: continue one prompt and stop."""

import sys
from typing import Annotated

import typer

from quire.commands import flags


def generate(
    context: typer.Context,
    model: flags.ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue; - reads it.")],
    *,
    max_tokens: Annotated[int, typer.Option(help="Output tokens, at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest with this share.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same text.", show_default=False)
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the output (repeatable).")
    ] = None,
    max_model_len: flags.MaxModelLen = None,
    device: flags.DeviceFlag = None,
    cpu_backend: flags.CpuBackend = None,
    cpu_isa: flags.CpuIsa = None,
    dtype: flags.DtypeFlag = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    quantization: flags.Quantization = None,
    packed_cache: flags.PackedCache = None,
    threads: flags.Threads = None,
) -> None:
    """Continue a prompt: starts a stack, streams the text to standard output, stops the stack.

    [bold]Examples[/bold]

    quire generate smollm2 "The capital of France is"
    quire generate smollm2 - --max-tokens 200 < prompt.txt
    """
    from quire.background import BackgroundStack
    from quire.errors import ConfigurationError
    from quire.models import resolve
    from quire.options import StackOptions
    from quire.progress import announce
    from quire.sampling import SamplingParams

    try:
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop or ()
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    text = sys.stdin.read() if prompt == "-" else prompt
    resolved = resolve(model, announce)
    announce(f"starting {resolved.name}")
    with BackgroundStack(resolved, StackOptions.among(context.params)) as background:

        async def stream() -> None:
            from quire.client import AsyncClient

            async with (
                AsyncClient(background.stack.grpc) as client,
                client.stream(text, params) as chunks,
            ):
                async for chunk in chunks:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
            sys.stdout.write("\n")

        background.run(stream())
