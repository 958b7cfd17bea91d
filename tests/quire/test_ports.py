"""Ports that are asked for, and ports that are kept for children."""

import contextlib
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from quire.door import TcpDoor
from quire.errors import ConfigurationError
from quire.models import ResolvedModel
from quire.options import StackOptions
from quire.ports import LOOPBACK, AskedPort, MetricsPorts, check_free, hold_shared
from quire.stack import Stack, check_ports

HELD = pytest.mark.skipif(sys.platform != "linux", reason="a port can be held on Linux")


def bound(port: int) -> socket.socket:
    """As a server binds."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((LOOPBACK, port))
    return listener


def test_ports_in_a_row_are_the_ones_asked_for() -> None:
    assert MetricsPorts(9401, 3).numbers == (9401, 9402, 9403)


def test_free_ports_differ() -> None:
    with contextlib.closing(MetricsPorts(None, 4)) as ports:
        assert len(set(ports.numbers)) == 4


@HELD
def test_a_kept_port_is_there_for_a_child_each_time_it_starts() -> None:
    with contextlib.closing(MetricsPorts(None, 1)) as ports:
        [port] = ports.numbers
        for _ in range(2):
            with bound(port) as child:
                child.listen()
                with socket.create_connection((LOOPBACK, port)) as scrape:
                    assert scrape.getpeername()[1] == port


@HELD
def test_a_kept_port_is_not_found_free_by_others() -> None:
    with contextlib.closing(MetricsPorts(None, 1)) as ports:
        [port] = ports.numbers
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((LOOPBACK, port))
    with socket.socket() as stranger:
        stranger.bind((LOOPBACK, port))  # it was given back


def test_a_port_that_two_ask_for_is_refused() -> None:
    asked = [AskedPort("--port", LOOPBACK, 9000), AskedPort("--grpc-port", LOOPBACK, 9000)]
    with pytest.raises(ConfigurationError, match="--port and --grpc-port are both 9000; each must"):
        check_free(asked)


def test_a_port_that_somebody_has_is_refused() -> None:
    with bound(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--port {port} on 127.0.0.1: Address alr"):
            check_free([AskedPort("--port", LOOPBACK, port)])


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    with pytest.raises(
        ConfigurationError, match=f"--metrics-port is {port}; it must be 1 to 65535"
    ):
        check_free([AskedPort("--metrics-port", LOOPBACK, port)])


def test_what_our_processes_share_is_refused_to_everybody_else() -> None:
    with bound(0) as free:
        port = free.getsockname()[1]
    asked = [AskedPort("--port", LOOPBACK, port)]
    with hold_shared(asked):
        with socket.create_server((LOOPBACK, port), reuse_port=True) as ours:
            assert ours.getsockname()[1] == port
        with pytest.raises(ConfigurationError, match=f"--port {port} on 127.0.0.1: Address alr"):
            check_free(asked)
        with pytest.raises(OSError, match="in use"):
            socket.create_server((LOOPBACK, port))
    check_free(asked)


def test_what_somebody_has_to_himself_cannot_be_shared() -> None:
    with bound(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--port {port} on 127.0.0.1: Address alr"):
            hold_shared([AskedPort("--port", LOOPBACK, port)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router_processes": 0}, "router_processes is 0; it must be at least 1"),
        ({"router_processes": 2, "max_stored_bytes": 9}, "max_stored_bytes is 9; with 2 router"),
    ],
)
def test_routers_that_cannot_share(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    door = TcpDoor(LOOPBACK, 8000, 50050)
    with pytest.raises(ConfigurationError, match=message):
        Stack(ResolvedModel(tmp_path, "tiny"), StackOptions(**options), door=door)


def test_routers_without_a_port_are_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="router_processes is 2; without a port to share"):
        Stack(ResolvedModel(tmp_path, "tiny"), StackOptions(router_processes=2))


def test_routers_have_metrics_ports_after_the_workers() -> None:
    options = StackOptions(metrics_port=65532, replicas=2, router_processes=2)
    with pytest.raises(ConfigurationError, match="router-1's metrics port is 65536; it must be"):
        check_ports(options, None)
