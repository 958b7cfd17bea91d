"""Ports for servers of tests: free, and below those that the kernel gives to clients."""

import random
import socket

_OURS = range(20_000, 30_000)


def free_port() -> int:
    """A port of loopback that nobody has. One that the kernel chose could be a client's before the
    server that it is meant for has started."""
    while True:
        port = random.SystemRandom().choice(_OURS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
