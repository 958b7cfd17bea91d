"""Hosts of the tests' own: network namespaces, each on a link that can be unplugged.

Only root may make them, and not in every container; tests that need one are skipped elsewhere.
A distant host is at the end of a `wire`, which does what `tc netem` would do: the kernels that
tests run on often lack it.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from shutil import which

import pytest

from tests.chaos.wire import Wire, wire


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Host:
    """A namespace, and the address at which it finds this one."""

    name: str
    number: int

    @property
    def gateway(self) -> str:
        """This side of the link."""
        return f"10.213.{self.number}.1"

    @property
    def within(self) -> tuple[str, ...]:
        """Runs a command there."""
        return (which("ip") or "ip", "netns", "exec", self.name)

    def unplug(self) -> None:
        """Packets are lost, both ways, and nobody is told."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """As before."""
        _ip("-n", self.name, "link", "set", "eth0", "up")


@contextlib.contextmanager
def host(number: int) -> Iterator[Host]:
    """A namespace on a link of its own. Skips the test where there can be none."""
    with _namespace(number) as made:
        ours = _device(number)
        _ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", made.name)
        try:
            _address(made, ours)
            yield made
        finally:  # with its namespace it would go some time later, and its name is needed again
            _ip("link", "delete", ours)


@contextlib.contextmanager
def distant_host(number: int) -> Iterator[tuple[Host, Wire]]:
    """The same at the end of a wire. Skips the test where there can be none."""
    ours, theirs = _device(number), _device(number) + "x"
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(_namespace(number))
        try:
            way = stack.enter_context(wire(ours, theirs))
        except OSError as error:
            pytest.skip(f"no network devices of our own here: {error}")
        _ip("link", "set", theirs, "netns", made.name, "name", "eth0")
        _address(made, ours)
        yield made, way


@contextlib.contextmanager
def _namespace(number: int) -> Iterator[Host]:
    made = Host(f"quire-{os.getpid()}-{number}", os.getpid() % 100 * 2 + number)
    if which("ip") is None:
        pytest.skip("no `ip` command")
    try:
        _ip("netns", "add", made.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        _ip("netns", "delete", made.name)


def _device(number: int) -> str:
    """This side's; at most 15 characters."""
    return f"qu{os.getpid()}{number}"


def _address(made: Host, ours: str) -> None:
    """Gives both ends of a link their addresses, and lets them go up."""
    _ip("address", "add", f"{made.gateway}/24", "dev", ours)
    _ip("link", "set", ours, "up")
    theirs = made.gateway.removesuffix("1") + "2"
    _ip("-n", made.name, "address", "add", f"{theirs}/24", "dev", "eth0")
    _ip("-n", made.name, "link", "set", "lo", "up")
    made.plug()
