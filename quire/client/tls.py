"""How a client knows a router that has a certificate, and is known by one of its own."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from quire.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Paths of files in PEM. `Tls()` is for a router whose certificate is of a public authority."""

    ca_certs: str | None = None
    """The authorities that the router's certificate may be of; None: gRPC's own list."""
    certfile: str | None = None
    """Of a client, where the router asks for one (`--ssl-ca-certs`)."""
    keyfile: str | None = None
    """Its private key; None: in the file of the certificate."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ConfigurationError for a file that cannot be read."""
        chain = _read("certfile", self.certfile)
        key = _read("keyfile", self.keyfile or self.certfile)
        return grpc.ssl_channel_credentials(_read("ca_certs", self.ca_certs), key, chain)


def _read(name: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{name} is {path!r}; it must be a file that can be read: {error.strerror}"
        ) from error
