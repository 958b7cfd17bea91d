"""By which names a server may be asked.

A page of any site can have its own name lead to 127.0.0.1 (DNS rebinding): then a browser takes
what listens there for a part of that site, and lets the page ask and read. The name is still in
the request's Host header. So a server that asks nobody for a key, and means this machine alone,
answers to names that no stranger can have: addresses, localhost, what has no dot within, and what
its operator names.
"""

import ipaddress
from collections.abc import Collection

from gateway.cors import names_of
from gateway.errors import Fault, RequestError, quote
from protos.flags import API_KEY_FILE, HOST, SSL_CERTFILE
from protos.loopback import is_loopback

OPTION = "--allowed-hosts"


class HostPolicy:
    """The names that are answered to."""

    def __init__(self, named: Collection[str] | None) -> None:
        """None: all."""
        self._named = None if named is None else frozenset(map(_plain, named))

    def check(self, host: str | None) -> None:
        """Raises RequestError for a Host header that says another name."""
        if self._named is None or host is None:
            return
        name = _plain(_without_port(host))
        if "." not in name or name.endswith(".localhost") or name in self._named:
            return
        if not _is_address(name):
            raise RequestError(
                Fault.WRONG_HOST,
                f"Host is {quote(host)}; this server asks for no key, and answers only to "
                f"localhost, to addresses and to the names in {OPTION}",
                field="Host",
            )


ANY_HOST = HostPolicy(None)


def parse_hosts(said: str | None, listens_on: str | None) -> HostPolicy:
    """The policy out of the flag, for a server that asks for no key.

    `listens_on` is the address or name; None: a unix socket. Where nothing is said, a server that
    other machines reach answers to any name: it cannot know what they call it. So does one that
    only a unix socket leads to: no browser gets there.

    Raises ValueError, with a message for the operator.
    """
    named = names_of(OPTION, said) if said is not None else ()
    for name in named:
        if ":" in name and not _is_address(name):
            raise ValueError(
                f"{OPTION} has {quote(name)}; it must be a name alone, which holds for every port"
            )
    if "*" in named:
        return ANY_HOST
    if said is None and (listens_on is None or not is_loopback(listens_on)):
        return ANY_HOST
    return HostPolicy(named if listens_on is None else (*named, listens_on))


def exposure(listens_on: str | None, *, asks_for_keys: bool, speaks_tls: bool) -> str | None:
    """A warning about a server that other machines reach as they should not; None if there is none.

    `listens_on` as in `parse_hosts`.
    """
    if listens_on is None or is_loopback(listens_on) or speaks_tls:
        return None
    reached = f"{HOST.option} is {listens_on}, which other machines can reach, without TLS"
    if asks_for_keys:
        return f"{reached}: keys and prompts go in the clear; give {SSL_CERTFILE.option}"
    wanted = f"{API_KEY_FILE.option} and {SSL_CERTFILE.option}"
    return f"{reached} or a key: anybody there may ask, and prompts go in the clear; give {wanted}"


def _without_port(host: str) -> str:
    if host.startswith("["):
        address, _, behind = host.partition("]")
        return host if behind.partition(":")[0] else address + "]"
    return host.partition(":")[0]


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
