"""Every sequence that has not ended: by router, then by the router's id."""

from collections.abc import Iterator

from scheduler.core.events import Refused, Request
from scheduler.core.sequence import Sequence, Status


class Registry:
    """What the core was given and has not given back."""

    def __init__(self) -> None:
        self._of_router: dict[int, dict[int, Sequence]] = {}

    def __len__(self) -> int:
        return sum(len(mine) for mine in self._of_router.values())

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for mine in self._of_router.values() for sequence in mine.values())

    def check_free(self, request: Request) -> None:
        """Raises Refused if an id of its samples is in flight."""
        mine = self._of_router.get(request.router, {})
        taken = next((i for i in _ids(request) if i in mine), None)
        if taken is not None:
            raise Refused(f"sequence_id {taken} is in flight already", field="sequence_id")

    def add(self, samples: list[Sequence]) -> None:
        """All samples of one request."""
        mine = self._of_router.setdefault(samples[0].request.router, {})
        mine.update((sequence.sequence_id, sequence) for sequence in samples)

    def find(self, router: int, sequence_id: int) -> Sequence | None:
        """None if there is none, or none any more."""
        return self._of_router.get(router, {}).get(sequence_id)

    def of_router(self, router: int) -> list[Sequence]:
        """Everything that a router asked for."""
        return list(self._of_router.get(router, {}).values())

    def samples(self, request: Request) -> list[Sequence]:
        """Those of a request that have not ended."""
        mine = self._of_router.get(request.router, {})
        return [mine[i] for i in _ids(request) if i in mine]

    def remove(self, sequence: Sequence) -> None:
        """It has ended."""
        router = sequence.request.router
        mine = self._of_router[router]
        del mine[sequence.sequence_id]
        if not mine:
            del self._of_router[router]

    def check_integrity(self) -> None:
        """Raises AssertionError if anything is kept that has ended."""
        assert all(s.status is not Status.FINISHED for s in self), "an ended sequence is kept"
        assert all(self._of_router.values()), "a router without sequences is kept"


def _ids(request: Request) -> range:
    return range(request.sequence_id, request.sequence_id + request.num_samples)
