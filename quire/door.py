"""Where a stack answers on TCP, and to whom."""

import json
from dataclasses import dataclass, field

from gateway.keys import KEY_VARIABLE, KEYS_VARIABLE, Keys, read_keys
from protos.flags import SSL_CA_CERTS, SSL_CERTFILE, SSL_KEYFILE
from quire.errors import ConfigurationError
from quire.ports import AskedPort


@dataclass(frozen=True, slots=True)
class TcpDoor:
    """The router answers on TCP."""

    host: str
    port: int
    grpc_port: int
    api_keys: Keys = field(default_factory=dict, repr=False)
    """By name, those of `api_key_file` among them; without any, everybody may ask."""
    api_key_file: str | None = None
    share_prefix_cache: bool = False
    """Several keys have one prefix cache."""
    ssl_certfile: str | None = None
    """None: no TLS."""
    ssl_keyfile: str | None = None
    ssl_ca_certs: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigurationError for part of what TLS needs."""
        for option, given in (
            (SSL_KEYFILE.option, self.ssl_keyfile),
            (SSL_CA_CERTS.option, self.ssl_ca_certs),
        ):
            if given is not None and self.ssl_certfile is None:
                raise ConfigurationError(f"{option} is {given!r}; it needs {SSL_CERTFILE.option}")

    @property
    def arguments(self) -> list[str]:
        """A router's."""
        given = {
            "--host": self.host,
            "--port": str(self.port),
            "--grpc-port": str(self.grpc_port),
            "--api-key-file": self.api_key_file,
            "--ssl-certfile": self.ssl_certfile,
            "--ssl-keyfile": self.ssl_keyfile,
            "--ssl-ca-certs": self.ssl_ca_certs,
        }
        words = [word for option, value in given.items() if value for word in (option, value)]
        return [*words, *(["--share-prefix-cache"] if self.share_prefix_cache else [])]

    @property
    def environment(self) -> tuple[tuple[str, str], ...]:
        """A router's, which must not find the same keys in ours again."""
        of_file = read_keys((), self.api_key_file, {}) if self.api_key_file else {}
        others = {
            name: rest
            for name, keys in self.api_keys.items()
            if (rest := [key for key in keys if key not in of_file.get(name, ())])
        }
        return ((KEY_VARIABLE, ""), (KEYS_VARIABLE, json.dumps(others) if others else ""))

    @property
    def url(self) -> str:
        """Of the OpenAI API, from this machine."""
        scheme = "http" if self.ssl_certfile is None else "https"
        return f"{scheme}://{self.reachable_host}:{self.port}"

    @property
    def grpc(self) -> str:
        """Target of InferenceService, from this machine."""
        return f"{self.reachable_host}:{self.grpc_port}"

    @property
    def reachable_host(self) -> str:
        """The host itself, or loopback where it means every interface."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    @property
    def ports(self) -> list[AskedPort]:
        """What must be free for it to open."""
        return [
            AskedPort("--port", self.host, self.port),
            AskedPort("--grpc-port", self.host, self.grpc_port),
        ]
