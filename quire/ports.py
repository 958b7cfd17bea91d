"""TCP ports of this machine: those that were asked for are checked, others are found and kept."""

import contextlib
import os
import socket
import sys
from dataclasses import dataclass

from quire.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class AskedPort:
    """A port that somebody named."""

    name: str
    """By which its owner knows it: "--port"."""
    host: str
    port: int


def check_free(asked: list[AskedPort]) -> None:
    """Raises ConfigurationError if one of them cannot be had, or two are the same."""
    names: dict[int, str] = {}
    for one in asked:
        other = names.setdefault(one.port, one.name)
        if other != one.name:
            raise ConfigurationError(
                f"{other} and {one.name} are both {one.port}; each must have one of its own"
            )
    for one in asked:
        _try_to_bind(one)


class MetricsPorts:
    """Of a stack's scheduler, its workers, and routers that share a port, in that order: the same
    however often they are restarted."""

    def __init__(self, first: int | None, count: int) -> None:
        """From `first` on; without it, any that are free."""
        self._holders = [_hold_free_port() for _ in range(count)] if first is None else []
        self.numbers: tuple[int, ...] = (
            tuple(holder.getsockname()[1] for holder in self._holders)
            if first is None
            else tuple(range(first, first + count))
        )
        if sys.platform != "linux":  # there a held port is refused to our children as well
            self.close()

    def close(self) -> None:
        """Nobody needs them any more."""
        for holder in self._holders:
            holder.close()


def hold_shared(asked: list[AskedPort]) -> contextlib.ExitStack:
    """Ports that our own processes share; until it is closed nobody else may have them.

    They are told apart from strangers by asking to share (SO_REUSEPORT), which the kernel grants to
    processes of one user alone. A socket that is bound that way and does not listen gets none of
    their connections; but whoever asks for a port to himself, as every stack does of the ports it
    starts with, is refused while one of ours is being restarted, too.
    Raises ConfigurationError.
    """
    holders = contextlib.ExitStack()
    for one in asked:
        family = socket.AF_INET6 if ":" in one.host else socket.AF_INET
        holder = holders.enter_context(socket.socket(family))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            holder.bind((one.host, one.port))
        except OSError as error:
            holders.close()
            raise ConfigurationError(
                f"{one.name} {one.port} on {one.host}: {os.strerror(error.errno or 0)}"
            ) from error
    return holders


def _hold_free_port() -> socket.socket:
    """A socket that is bound and does not listen.

    To Linux its port is taken whenever somebody wants any free one; and yet whoever asks for it by
    number, with SO_REUSEADDR as every server does, may listen on it.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((LOOPBACK, 0))
    return holder


def _try_to_bind(asked: AskedPort) -> None:
    if not 1 <= asked.port <= LAST_PORT:
        raise ConfigurationError(f"{asked.name} is {asked.port}; it must be 1 to {LAST_PORT}")
    family = socket.AF_INET6 if ":" in asked.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((asked.host, asked.port))
        except (socket.gaierror, UnicodeError) as error:
            raise ConfigurationError(
                f"--host is {asked.host!r}; no address goes by that name"
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"{asked.name} {asked.port} on {asked.host}: {os.strerror(error.errno or 0)}"
            ) from error
