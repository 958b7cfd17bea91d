"""How the processes of a cell know each other: by a token that all of them have, by certificates
of one authority, or by both.

    router, worker, operator ── token, certificate ──▶ scheduler

On unix sockets and on loopback nothing is needed: there, who may dial is the machine's matter. A
scheduler that other machines reach needs one of the two. A token is said in the clear where there
are no certificates: it keeps strangers out of a network that nobody can listen to.

What is done with it is in `protos.channels`; nothing here loads gRPC.
"""

import logging
import os
import re
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protos import flags
from protos.flag import FlagError
from protos.loopback import is_loopback

TOKEN_KEY = "quire-cluster-token"
"""Of the metadata of every call to a scheduler."""
TOKEN_VARIABLE = "QUIRE_CLUSTER_TOKEN"

_TOKEN = re.compile(r"[!-~]{16,1024}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What mutual TLS needs, in PEM."""

    chain: bytes
    """This process's own certificate, and those between it and the authority."""
    key: bytes = field(repr=False)
    authority: bytes
    """Whose certificates the other side may have."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What this process shows to others, and asks them for; nothing by default."""

    tokens: tuple[str, ...] = field(default=(), repr=False)
    """Any of them lets in; the first is what this process says."""
    certificates: Certificates | None = None

    @classmethod
    def read(
        cls,
        *,
        token_file: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        ca: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> "Trust":
        """From the files that flags name, and the variable; warns of files that others can read.
        Raises FlagError."""
        trust = cls(_tokens(token_file, environment), _certificates(cert, key, ca))
        _warn_if_exposed(flags.CLUSTER_TOKEN_FILE.option, token_file)
        _warn_if_exposed(flags.TLS_KEY.option, key)
        return trust

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To send along with every call."""
        return ((TOKEN_KEY, self.tokens[0]),) if self.tokens else ()

    def check_reach(self, option: str, address: str) -> None:
        """Raises FlagError for an address that strangers could dial."""
        if self.tokens or self.certificates or is_unix(address) or is_loopback(_host(address)):
            return
        raise FlagError(
            f"{option} is {address}, which other machines can reach; that needs "
            f"{flags.CLUSTER_TOKEN_FILE.option} (or {TOKEN_VARIABLE}), or {flags.TLS_CERT.option}, "
            f"{flags.TLS_KEY.option} and {flags.TLS_CA.option}, of the scheduler, its routers and "
            "its workers alike; 127.0.0.1 and unix:PATH need nothing"
        )


def _tokens(path: str | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    if path is None:
        said = environment.get(TOKEN_VARIABLE)
        if said is None:
            return ()
        return (_checked_token(TOKEN_VARIABLE, said.strip()),)
    option = flags.CLUSTER_TOKEN_FILE.option
    lines = _read(option, path).decode(errors="replace").splitlines()
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens:
        raise FlagError(f"{option} is {path!r}; it must hold a token, one a line")
    return tuple(_checked_token(f"a token in {path}", token) for token in tokens)


def _checked_token(name: str, token: str) -> str:
    """Never shows it."""
    if not _TOKEN.fullmatch(token):
        raise FlagError(
            f"{name} has {len(token)} characters; it must have 16 to 1024, printable ASCII without "
            "spaces (`openssl rand -hex 32` makes one)"
        )
    return token


def _certificates(cert: str | None, key: str | None, ca: str | None) -> Certificates | None:
    given = {flags.TLS_CERT.option: cert, flags.TLS_KEY.option: key, flags.TLS_CA.option: ca}
    missing = [option for option, path in given.items() if path is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise FlagError(f"{' and '.join(missing)} is missing; {', '.join(given)} go together")
    assert cert is not None
    assert key is not None
    assert ca is not None
    check_pair(flags.TLS_CERT.option, cert, flags.TLS_KEY.option, key)
    check_authority(flags.TLS_CA.option, ca)
    return Certificates(
        _read(flags.TLS_CERT.option, cert),
        _read(flags.TLS_KEY.option, key),
        _read(flags.TLS_CA.option, ca),
    )


def check_pair(cert_option: str, cert: str, key_option: str, key: str) -> None:
    """Raises FlagError unless these are a certificate and its key, in PEM, without a password."""
    _read(cert_option, cert)
    _read(key_option, key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        said = getattr(error, "reason", None)
        reason = said.lower().replace("_", " ") if said else "one of them is not PEM"
        raise FlagError(
            f"{cert_option} is {cert!r} and {key_option} is {key!r}; they must hold a certificate "
            f"and its key in PEM, without a password: {reason}"
        ) from error


def check_authority(option: str, path: str) -> None:
    """Raises FlagError unless the file holds certificates in PEM."""
    _read(option, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, ValueError) as error:
        raise FlagError(f"{option} is {path!r}; it must hold certificates in PEM") from error


NO_TRUST = Trust()
"""Everybody is let in, and nothing is shown."""


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FlagError(
            f"{option} is {path!r}; it must be a file that can be read: {error.strerror}"
        ) from error


def exposure(option: str, path: str) -> str | None:
    """A warning about a file of secrets that others than its owner can read; else None."""
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return None
    who = "every user of this machine" if mode & stat.S_IROTH else "its group"
    return f"{option} {path} can be read by {who} (mode {mode:o})"


def _warn_if_exposed(option: str, path: str | None) -> None:
    if path is not None and (warning := exposure(option, path)):
        _log.warning("%s", warning)


def is_unix(address: str) -> bool:
    """Whether it is that of a unix socket."""
    return address.startswith("unix:")


def _host(address: str) -> str:
    return address.removeprefix("dns:").rpartition(":")[0]
