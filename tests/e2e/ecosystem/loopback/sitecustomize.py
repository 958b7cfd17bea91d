"""Ends the interpreter, with a message, at its first look beyond loopback.

Python imports this module by itself where its folder is on PYTHONPATH. It ends the process rather
than raise: what collects statistics in the background would swallow an exception.
"""

import ipaddress
import os
import sys


def is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not is_loopback(host):
        os.write(2, f"{sys.argv} wanted to talk to {host!r}, which is not loopback\n".encode())
        os._exit(70)


sys.addaudithook(watch)
