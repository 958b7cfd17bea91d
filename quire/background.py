"""An event loop on a thread of its own, for callers that are not asynchronous; and a stack on one.

The stack's thread starts the processes and lives as long as they do, which the kernel's tie
between a child and the thread that started it asks for. Its loop also carries the caller's
requests.
"""

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import Coroutine
from types import TracebackType
from typing import TypeVar

from quire.models import ResolvedModel
from quire.options import StackOptions
from quire.stack import Stack

T = TypeVar("T")


class BackgroundLoop:
    """An event loop on a thread of its own."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self.closed = False

    def run(self, work: Coroutine[None, None, T]) -> T:
        """Runs work on the loop's thread and waits for it; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the thread, once what was cancelled has ended."""
        self.closed = True
        asyncio.run_coroutine_threadsafe(self._settle(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _settle(self) -> None:
        """Waits for what was cancelled to end: a start that was interrupted kills what it began."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)


class BackgroundStack:
    """A running stack on unix sockets. Close it, use it as a context manager, or let exit do it."""

    def __init__(self, model: ResolvedModel, options: StackOptions) -> None:
        """Returns when the stack is ready. Raises StackFailed; nothing is left running then."""
        self._loop = BackgroundLoop("quire")
        self.log: deque[str] = deque(maxlen=200)
        """The last lines that the processes wrote."""
        atexit.register(self.close)
        try:
            self.stack = self.run(self._start(model, options))
        except BaseException:
            self._end_loop()
            raise

    def run(self, work: Coroutine[None, None, T]) -> T:
        """Runs work on the loop's thread and waits for it; Ctrl-C cancels it."""
        return self._loop.run(work)

    def close(self) -> None:
        """Ends every process. May be called again."""
        if self._loop.closed:
            return
        try:
            self.run(self.stack.stop())
        finally:
            self._end_loop()

    def __enter__(self) -> "BackgroundStack":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _start(self, model: ResolvedModel, options: StackOptions) -> Stack:
        stack = Stack(model, options, log=self._heard)
        try:
            await stack.start()
            await stack.until_ready()
        except BaseException:
            await stack.kill()
            raise
        return stack

    def _heard(self, name: str, line: str) -> None:
        self.log.append(f"{name}: {line}")

    def _end_loop(self) -> None:
        atexit.unregister(self.close)
        self._loop.close()
