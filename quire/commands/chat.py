"""`quire chat`: a conversation in the terminal, streamed as it is generated."""

import asyncio
import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from quire.commands import flags

if TYPE_CHECKING:
    from quire.commands.server import Server
    from quire.commands.terminal import Screen

HELP_LINE = "Ctrl-C interrupts an answer; /clear forgets, /exit (or Ctrl-D) leaves."
_COMMAND = re.compile(r"/\w*(?!\S)")
"""What a line begins with that is meant for us: a path, which has another slash, is not."""


def chat(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help=flags.MODEL_HELP, show_default=False)
    ] = None,
    *,
    url: flags.UrlFlag = None,
    api_key: flags.ApiKey = None,
    ssl_ca_certs: flags.CaCerts = None,
    system: Annotated[
        str | None, typer.Option(help="What the model is told first.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy; at most 2.")] = 0.7,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens per answer (else what fits).", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same answer.", show_default=False)
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
    """Chat with a model: with the stack that runs here, a server, or one started for MODEL.

    From a pipe, each line is a turn, and only the answers are printed.

    [bold]Examples[/bold]

    quire chat smollm2
    quire chat --url http://127.0.0.1:8000
    echo "Why is the sky blue?" | quire chat smollm2 --temperature 0
    """
    from quire.commands.server import check_converses, server
    from quire.commands.terminal import Screen
    from quire.options import StackOptions

    choices = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    sampling = {name: value for name, value in choices.items() if value is not None}
    options = StackOptions.among(context.params)
    with server(model, url, api_key, options, ssl_ca_certs) as answers:
        check_converses(answers)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        screen = Screen(is_terminal=is_terminal)
        conversation = _Conversation(answers, screen, system, sampling)
        if is_terminal:
            _talk(conversation, answers.model)
        else:
            for line in sys.stdin:
                if line.strip():
                    conversation.turn(line.strip())


class _Conversation:
    """What was said so far; each turn adds a question and its answer."""

    def __init__(
        self,
        answers: "Server",
        screen: "Screen",
        system: str | None,
        sampling: dict[str, float | int],
    ) -> None:
        self._answers = answers
        self._screen = screen
        self._sampling = sampling
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)

    def clear(self) -> None:
        """Forgets all but the system message."""
        self._messages = list(self._opening)

    def turn(self, question: str) -> None:
        """Prints the answer as it comes; Ctrl-C ends it, and what was said of it is kept.

        Raises EOFError if Ctrl-D ended it, and RequestFailed.
        """
        self._messages.append({"role": "user", "content": question})
        said: list[str] = []
        try:
            asyncio.run(self._stream(said))
        except KeyboardInterrupt:
            self._screen.write(" …")
        except EOFError:
            self._screen.write(" …")
            raise
        finally:
            self._screen.end()
            if said:
                self._messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self._messages.pop()

    async def _stream(self, said: list[str]) -> None:
        payload = {"model": self._answers.model, "messages": self._messages, "stream": True}
        events = self._answers.endpoint.events("/v1/chat/completions", payload | self._sampling)
        with self._screen.watched():
            async with contextlib.aclosing(events):
                async for event in events:
                    for choice in event["choices"]:
                        if text := choice["delta"].get("content"):
                            said.append(text)
                            self._screen.write(text)


def _talk(conversation: _Conversation, model: str) -> None:
    """Reads turns from a terminal until it is left: Ctrl-D is EOFError, in an answer as well."""
    from rich.console import Console

    from quire.errors import RequestFailed

    console = Console(highlight=False)
    console.print(f"[bold]{model}[/]  [dim]{HELP_LINE}[/]\n")
    with _history(), contextlib.suppress(EOFError):
        while True:
            try:
                line = input("\001\033[1;34m\002›\001\033[0m\002 ").strip()
            except KeyboardInterrupt:
                console.print(f"\n[dim]{HELP_LINE}[/]")
                continue
            if line == "/exit":
                return
            if line == "/clear":
                conversation.clear()
                console.print("[dim]forgotten[/]\n")
            elif command := _COMMAND.match(line):
                console.print(f"[yellow]{command[0]} is no command.[/] [dim]{HELP_LINE}[/]\n")
            elif line:
                try:
                    conversation.turn(line)
                except RequestFailed as error:
                    console.print(f"[red]error:[/] {error}", markup=True)
                console.print()
    console.print()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines typed before, over sessions, under the arrow keys."""
    import readline

    from protos.folders import cache_dir

    path = cache_dir() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
