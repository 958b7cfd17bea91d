"""Whoever asks by a name that a stranger could have is refused."""

import pytest

from gateway.errors import Fault, RequestError
from gateway.hosts import ANY_HOST, exposure, parse_hosts

OURS = [
    *("localhost", "LOCALHOST:8000", "localhost.", "app.localhost:80", "quire", "quire:8000"),
    *("127.0.0.1", "127.0.0.1:8000", "10.1.2.3:80", "[::1]", "[::1]:8000"),
]
STRANGE = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "1.2.3",
    "[::1].evil.example",
]

OWN = ["127.0.0.1", "::1", "localhost", "Localhost.", "127.0.0.2", "127.1", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("host", OURS)
def test_what_no_stranger_can_have(host: str) -> None:
    parse_hosts(None, "127.0.0.1").check(host)


@pytest.mark.parametrize("host", STRANGE)
@pytest.mark.parametrize("listens_on", OWN)
def test_a_name_of_somebody_else(host: str, listens_on: str) -> None:
    with pytest.raises(RequestError, match="answers only to localhost, to addresses") as caught:
        parse_hosts(None, listens_on).check(host)
    assert caught.value.fault is Fault.WRONG_HOST


def test_names_that_the_operator_gives() -> None:
    policy = parse_hosts("Quire.example, llm.example", "127.0.0.1")
    for host in ("quire.example", "QUIRE.example.:8000", "llm.example"):
        policy.check(host)
    with pytest.raises(RequestError):
        policy.check("other.example")
    with pytest.raises(RequestError):
        parse_hosts('["quire.example"]', "0.0.0.0").check("other.example")
    with pytest.raises(ValueError, match=r"--allowed-hosts is .*; it is not valid JSON"):
        parse_hosts("[quire", "127.0.0.1")


def test_names_hold_where_nothing_else_is_known() -> None:
    policy = parse_hosts("quire.example", None)
    policy.check("quire.example")
    with pytest.raises(RequestError):
        policy.check("other.example")


@pytest.mark.parametrize("name", ["quire.example:8000", "https://quire.example", "[::1]:8000"])
def test_a_port_is_no_part_of_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="it must be a name alone") as caught:
        parse_hosts(f"llm.example, {name}", "127.0.0.1")
    assert str(caught.value).startswith(f'--allowed-hosts has "{name}"; ')
    parse_hosts("::1, [::1], 10.1.2.3", "127.0.0.1")


@pytest.mark.parametrize(
    ("said", "listens_on"), [("*", "127.0.0.1"), (None, "0.0.0.0"), (None, None), (None, "box.lan")]
)
def test_where_any_name_is_answered_to(said: str | None, listens_on: str | None) -> None:
    assert parse_hosts(said, listens_on) is ANY_HOST
    ANY_HOST.check("evil.example")


def test_who_says_no_name() -> None:
    """HTTP/1.0, and no browser."""
    parse_hosts(None, "127.0.0.1").check(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "quire.example"])
def test_who_is_reached_by_other_machines_in_the_clear_hears_so(host: str) -> None:
    def warning(*, asks_for_keys: bool, speaks_tls: bool = False) -> str | None:
        return exposure(host, asks_for_keys=asks_for_keys, speaks_tls=speaks_tls)

    reached = f"--host is {host}, which other machines can reach, without TLS"
    assert warning(asks_for_keys=True) == (
        f"{reached}: keys and prompts go in the clear; give --ssl-certfile"
    )
    assert warning(asks_for_keys=False) == (
        f"{reached} or a key: anybody there may ask, and prompts go in the clear; "
        "give --api-key-file and --ssl-certfile"
    )
    assert warning(asks_for_keys=True, speaks_tls=True) is None


@pytest.mark.parametrize("host", [None, *OWN])
def test_who_is_this_machines_alone_needs_nothing(host: str | None) -> None:
    assert exposure(host, asks_for_keys=False, speaks_tls=False) is None
