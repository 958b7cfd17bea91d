"""`quire chat`: a conversation in the terminal, streamed as it is generated."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from quire.commands import flags

if TYPE_CHECKING:
    from quire.commands.server import Server

HELP_LINE = "Ctrl-C interrupts an answer; /clear forgets, /exit (or Ctrl-D) leaves."


def chat(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help=flags.MODEL_HELP, show_default=False)
    ] = None,
    *,
    url: flags.UrlFlag = None,
    api_key: flags.ApiKey = None,
    system: Annotated[
        str | None, typer.Option(help="What the model is told first.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens per answer (else what fits).", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same answer.", show_default=False)
    ] = None,
    max_model_len: flags.MaxModelLen = None,
    device: flags.DeviceFlag = None,
    dtype: flags.DtypeFlag = None,
    threads: flags.Threads = None,
) -> None:
    """Chat with a model: with the stack that runs here, a server, or one started for MODEL.

    From a pipe, each line is a turn, and only the answers are printed.

    [bold]Examples[/bold]

    quire chat smollm2
    quire chat --url http://127.0.0.1:8000
    echo "Why is the sky blue?" | quire chat smollm2 --temperature 0
    """
    from quire.commands.server import server
    from quire.options import StackOptions

    choices = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    sampling = {name: value for name, value in choices.items() if value is not None}
    with server(model, url, api_key, StackOptions.among(context.params)) as answers:
        conversation = _Conversation(answers, system, sampling)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _talk(conversation, answers.model)
        else:
            for line in sys.stdin:
                if line.strip():
                    conversation.turn(line.strip())


class _Conversation:
    """What was said so far; each turn adds a question and its answer."""

    def __init__(
        self, answers: "Server", system: str | None, sampling: dict[str, float | int]
    ) -> None:
        self._answers = answers
        self._sampling = sampling
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)

    def clear(self) -> None:
        """Forgets all but the system message."""
        self._messages = list(self._opening)

    def turn(self, question: str) -> None:
        """Prints the answer as it comes; Ctrl-C ends it, and what was said of it is kept."""
        self._messages.append({"role": "user", "content": question})
        said: list[str] = []
        try:
            asyncio.run(self._stream(said))
        except KeyboardInterrupt:
            sys.stdout.write(" …")
        finally:
            if said:
                sys.stdout.write("\n")
                sys.stdout.flush()
                self._messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self._messages.pop()

    async def _stream(self, said: list[str]) -> None:
        payload = {"model": self._answers.model, "messages": self._messages, "stream": True}
        events = self._answers.endpoint.events("/v1/chat/completions", payload | self._sampling)
        async with contextlib.aclosing(events):
            async for event in events:
                for choice in event["choices"]:
                    if text := choice["delta"].get("content"):
                        said.append(text)
                        sys.stdout.write(text)
                        sys.stdout.flush()


def _talk(conversation: _Conversation, model: str) -> None:
    """Reads turns from a terminal until it is left."""
    from rich.console import Console

    from quire.errors import RequestFailed

    console = Console(highlight=False)
    console.print(f"[bold]{model}[/]  [dim]{HELP_LINE}[/]\n")
    with _history():
        while True:
            try:
                line = input("\001\033[1;34m\002›\001\033[0m\002 ").strip()
            except KeyboardInterrupt:
                console.print(f"\n[dim]{HELP_LINE}[/]")
                continue
            except EOFError:
                console.print()
                return
            if line == "/exit":
                return
            if line == "/clear":
                conversation.clear()
                console.print("[dim]forgotten[/]\n")
            elif line:
                try:
                    conversation.turn(line)
                except RequestFailed as error:
                    console.print(f"[red]error:[/] {error}", markup=True)
                console.print()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines typed before, over sessions, under the arrow keys."""
    import readline

    from quire.paths import cache_dir

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
