"""Which addresses lead nowhere but to this machine."""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether every address that goes by this name, or is this number, is this machine's alone; not
    where there is none. May ask a name server."""
    name = host.strip("[]").rstrip(".")
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)} if name else set()
    except (OSError, ValueError):  # ValueError: no name at all
        return False
    return bool(found) and all(map(_is_own, found))


def _is_own(number: str) -> bool:
    address = ipaddress.ip_address(number)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
