"""What one router process was told to be."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.cors import CorsPolicy
from gateway.hosts import ANY_HOST, HostPolicy
from gateway.keys import Keys
from gateway.limits import DEFAULT_LIMITS, RequestLimits
from protos import flags
from protos.trust import NO_TRUST, Trust
from router.listeners import Addresses, ConfigurationError
from router.tls import TlsFiles

_MAX_ID_LEN = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """See the flags of the process."""

    model: Path
    scheduler: str
    """host:port or unix:/path."""
    served_model_name: str | None
    """None: the directory's name."""
    chat_template: Path | None
    """None: the directory's own."""
    tool_call_parser: str
    reasoning_parser: str
    """Names of formats, see `gateway.parsing.formats`."""
    host: str
    port: int
    """0: any free one."""
    uds: Path | None
    """A Unix socket instead of host and port."""
    grpc_listen: str
    """host:port (0: any free one) or unix:/path."""
    max_body_bytes: int
    max_in_flight: int
    drain_timeout_s: float
    scheduler_timeout_s: float
    seed: int | None
    """Of the seeds given to requests that bring none; None: they are random."""
    router_id: str | None = None
    """What the scheduler's log calls it, with a random part behind it; None: host and process."""
    max_stored_bytes: int = flags.MAX_STORED_BYTES.default
    """Of responses that are kept for clients to come back to; 0 keeps none."""
    response_ttl_s: float = flags.RESPONSE_TTL.default
    """How long they are kept."""
    cors: CorsPolicy | None = None
    """None: closed."""
    hosts: HostPolicy = ANY_HOST
    """The names that it answers to while it asks for no key."""
    read_keys: Callable[[], Keys] = dict
    """What clients must send one of, by name, as it is said now; without any, everybody may ask.
    Raises FlagError."""
    shares_prefixes: bool = False
    """Keys of all names have one prefix cache."""
    tls: TlsFiles | None = None
    """Towards clients, on the main port and gRPC's."""
    trust: Trust = NO_TRUST
    """What the scheduler knows us by, and we it."""
    limits: RequestLimits = DEFAULT_LIMITS
    """What one request may ask for."""
    reuse_port: bool = False
    """Other processes that say so too answer on the same ports."""
    metrics_port: int | None = None
    """A port on loopback that is this process's own."""

    def __post_init__(self) -> None:
        if self.router_id is not None and not 1 <= len(self.router_id) <= _MAX_ID_LEN:
            raise ConfigurationError(
                f"--router-id has {len(self.router_id)} characters; it must have 1 to {_MAX_ID_LEN}"
            )
        if self.reuse_port and self.max_stored_bytes:
            raise ConfigurationError(
                f"--max-stored-bytes is {self.max_stored_bytes}; with --reuse-port it must be 0: "
                "a client that comes back may meet another process"
            )

    def keeps_apart(self, keys: Keys) -> bool:
        """Whether requests of one name's keys find nothing in the cache of another's."""
        return len(keys) > 1 and not self.shares_prefixes

    @property
    def addresses(self) -> Addresses:
        """Where it shall answer."""
        return Addresses(
            self.host,
            self.port,
            self.uds,
            self.grpc_listen,
            self.reuse_port,
            self.metrics_port,
            tls=self.tls is not None,
        )
