"""What a router answers of itself: for the OpenAPI document, as in `gateway.openai.answers`."""

from typing import Literal

from gateway.body import Part
from gateway.openai.answers import absent


class Alive(Part):
    """This process is alive."""

    status: Literal["alive"]
    """Always."""


class ReadyScheduler(Part):
    """The scheduler, seen from this router."""

    connected: bool
    """Whether it is."""
    incarnation: str | None
    """Names its process; null while it is not connected."""
    draining: bool
    """Whether it accepts nothing new."""
    status_age_s: float | None
    """Seconds since it last said how the cell is; null if it has not."""


class ReadyReplica(Part):
    """An attached worker, or several that serve as one."""

    replica_id: str
    """Its name."""
    epoch: str
    """Of its attachment."""
    alive: bool
    """Whether its step is within its deadline or, without one, it was seen lately."""
    last_seen_s: float
    """Seconds since it last said anything."""
    step_age_s: float | None
    """Seconds that its step in flight has run; null if there is none."""
    step_patience_s: float | None
    """Seconds that it may run."""
    num_steps: int
    """Since it attached."""
    num_generated_tokens: int
    """Since it attached."""
    num_vectors: int
    """Since it attached."""


class ReadyProbe(Part):
    """The token that this router asks for when nothing else is computed."""

    after_s: float
    """Seconds without a step or a token after which it is."""
    on_its_way_s: float | None
    """Seconds since it was sent; null if none is on its way."""
    last_answer_age_s: float | None
    """Seconds since one was answered; null if none was."""
    last_failure: str | None
    """Why the last one was not; null if it was."""


class ReadyDetails(Part):
    """The numbers behind an answer of /ready."""

    draining: bool
    """Whether this router accepts nothing new."""
    samples_in_flight: int
    """Answers that are being generated for its clients."""
    scheduler: ReadyScheduler
    """Who says what is computed next."""
    replicas: list[ReadyReplica]
    """Who computes."""
    last_step_age_s: float | None
    """Seconds since a step or a token was last heard of; null if none was."""
    last_token_age_s: float | None
    """Seconds since a token, or a vector, was; null if none was."""
    probe: ReadyProbe
    """What is done when nothing else is."""


class Ready(Part):
    """A request would be answered."""

    status: Literal["ready"]
    """Always."""
    details: ReadyDetails = absent()
    """With `verbose`."""


class Load(Part):
    """What this process is doing."""

    server_load: int
    """Requests that it is answering."""


class Version(Part):
    """What this server is."""

    version: str
    """Of Quire."""
