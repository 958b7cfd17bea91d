"""What the router knows of its cell: connected or not, who is attached there, what they can hold.

Everything is as of the last status. The scheduler sends one about once a second, so what is not
confirmed for longer is not believed any more.
"""

import logging
import time

from gateway.errors import Fault, RequestError, quote
from gateway.model import Model
from router.messages import CellStatus, ReplicaStatus, ServedModel

FRESH_S = 5.0
"""A status, or a sign of life of a replica that has nothing to do, counts for so long."""

HOLD_S = 10.0
"""For so long after the cell was lost new requests wait for it, like those in flight: a scheduler
or a worker that is started again is back sooner. Later ones are refused at once."""

_log = logging.getLogger(__name__)


class KnownCell:
    """The scheduler and its workers, seen from here."""

    def __init__(self, model: Model) -> None:
        """`model` is what this router serves."""
        self.incarnation: int | None = None
        """Of the connected scheduler; None while there is none."""
        self._model = model
        self._status: CellStatus | None = None
        self._misfit: str | None = None
        self._is_told_drained = False
        self._served: ServedModel | None = None
        """When it was last available."""
        self._away_since: float | None = None
        """Since when it is not; None while it is."""
        self._counts: dict[tuple[str, int], tuple[int, int]] = {}
        """Steps, and tokens and vectors, of each attached replica, by id and epoch."""
        self.progressed_at: float | None = None
        """When a step, a token or a vector was last heard of, on the monotonic clock."""
        self.produced_at: float | None = None
        """When a token or a vector was."""

    def welcomed(self, incarnation: int) -> None:
        """Connected; nothing is known yet."""
        self.incarnation = incarnation

    def lost(self) -> None:
        """Disconnected; nothing is known any more."""
        self.incarnation = None
        self._status = None
        self._note_availability()

    def heard(self, status: CellStatus) -> None:
        """The cell as it is now."""
        self._status = status
        if status.draining and not self._is_told_drained:
            _log.info("the scheduler drains: new requests are refused")
        self._is_told_drained = status.draining
        self._note_progress(status)
        misfit = self._why_misfit(status)
        if misfit is not None and misfit != self._misfit:
            _log.error("%s", misfit)
        self._misfit = misfit
        self._note_availability()

    def _note_progress(self, status: CellStatus) -> None:
        counts = {
            (replica.replica_id, replica.epoch): (
                replica.num_steps,
                replica.num_generated_tokens + replica.num_vectors,
            )
            for replica in status.replicas
        }
        for key, (num_steps, num_made) in counts.items():
            known_steps, known_made = self._counts.get(key, (0, 0))
            if num_made > known_made:
                self.produced_at = status.received_at
            if num_made > known_made or num_steps > known_steps:
                self.progressed_at = status.received_at
        self._counts = counts

    def _note_availability(self) -> None:
        try:
            self._served = self.check_available()
            self._away_since = None
        except RequestError:
            if self._away_since is None:
                self._away_since = time.monotonic()

    @property
    def status(self) -> CellStatus | None:
        """What was heard last; None while there is no scheduler."""
        return self._status

    @property
    def max_model_len(self) -> int | None:
        """Prompt and output tokens together; None until a replica has attached."""
        return self._status.model.max_model_len if self._status and self._status.model else None

    @property
    def is_available(self) -> bool:
        """Whether it takes requests now."""
        return self._away_since is None and self._served is not None

    @property
    def is_draining(self) -> bool:
        """Whether an operator gives it up: it goes on with what it has, and nobody comes after."""
        return self._status is not None and self._status.draining

    def check_accepts(self) -> ServedModel:
        """What is served, if a request can be accepted now: by a cell that takes it, or one that
        did until a moment ago and is not given up. Raises RequestError otherwise."""
        if self._served is None or self._away_since is None or self._misfit is not None:
            return self.check_available()
        if self.is_draining or time.monotonic() - self._away_since >= HOLD_S:
            return self.check_available()
        return self._served

    def check_available(self) -> ServedModel:
        """What is served, if the cell takes requests now. Raises RequestError otherwise."""
        if self.incarnation is None or self._status is None:
            raise unavailable("the scheduler is not connected")
        if self._status.draining:
            raise draining()
        if self._status.model is None or not self._status.replicas:
            raise unavailable("no worker is attached")
        if self._misfit is not None:
            raise unavailable(self._misfit)
        return self._status.model

    def can_hold(self, num_tokens: int) -> bool:
        """Whether a replica is attached that could compute a sequence of so many tokens.

        The last token of a sequence needs no KV.
        """
        status = self._status
        if status is None or status.model is None or self._misfit is not None:
            return False
        if status.model.is_encoder:
            return bool(status.replicas)
        return any(num_tokens <= replica.kv_tokens + 1 for replica in status.replicas)

    def fresh_replicas(self) -> list[ReplicaStatus]:
        """Those known to be alive: within a step that may take so long, or idle and seen lately."""
        if self._status is None:
            return []
        age_s = time.monotonic() - self._status.received_at
        if age_s >= FRESH_S:
            return []
        return [replica for replica in self._status.replicas if _is_fresh(replica, age_s)]

    def _why_misfit(self, status: CellStatus) -> str | None:
        """How what the workers serve differs from what this router serves."""
        theirs, ours = status.model, self._model
        if theirs is None or not status.replicas:
            return None
        if theirs.name != ours.name:
            return (
                f"the attached worker serves {quote(theirs.name)}; "
                f"this router serves {quote(ours.name)}"
            )
        if theirs.vocab_size != ours.tokenizer.vocab_size:
            return (
                f"the attached worker's vocabulary has {theirs.vocab_size} tokens; "
                f"this router's model has {ours.tokenizer.vocab_size}"
            )
        return None


def unavailable(message: str) -> RequestError:
    """Nobody serves just now."""
    return RequestError(Fault.UNAVAILABLE, message, retry_after_s=2)


def draining() -> RequestError:
    """An operator gives the cell up."""
    return unavailable("the scheduler is draining and accepts no new requests")


def _is_fresh(replica: ReplicaStatus, age_s: float) -> bool:
    """Whether a replica is alive, so long after its status."""
    if replica.step_age_s is not None:
        return replica.step_age_s + age_s < replica.step_patience_s
    return replica.last_seen_s + age_s < FRESH_S
