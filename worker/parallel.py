"""What the ranks of a replica do together; of a rank alone, nothing: it gets back what it gives.

Steps have a group of their own, whose limit is short: between two plans nobody waits in a
collective, because the transports hand out a plan only once all ranks hold it (`worker.lockstep`).
So a rank that waits for long waits for one that is gone or stuck.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch

from worker.models.shard import Shard
from worker.place import SOLE, Place

_LOADING = timedelta(minutes=30)
_STEP = timedelta(seconds=30)
_JOIN_S = 60.0


class LostRankError(Exception):
    """Another rank of this replica has gone or is stuck: this one cannot go on alone."""


class Group:
    """One rank alone.

    Attributes:
        rank: this one.
        world_size: ranks there are.
        siblings: connected sockets for the transports: rank 0 has one to each other rank, each
            other rank one to rank 0.
    """

    def __init__(self, place: Place) -> None:
        self.rank = place.rank
        self.world_size = place.world_size
        self.siblings: tuple[socket.socket, ...] = ()

    @property
    def shard(self) -> Shard:
        """This rank's part of the model."""
        return Shard(self.rank, self.world_size)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place; the same bits on each."""
        return x

    def join_columns(
        self, x: torch.Tensor, width: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[rows, width]: the first columns of what ranks have, as wide on all, side by side.

        Written to `out` where that is given.
        """
        first = x[:, :width]
        return first if out is None else out.copy_(first)

    def meet(self) -> None:
        """Waits until every rank is here, however long one of them loads."""

    def least(self, value: int) -> int:
        """The least of the ranks' values."""
        return value

    def agree(self, text: str) -> str:
        """Rank 0's text."""
        return text

    def leave(self) -> None:
        """Ends what joins it to the others."""


ALONE = Group(SOLE)


class Ranks(Group):
    """Several ranks: `torch.distributed`, with NCCL between GPUs and gloo between CPUs.

    Every method but `leave` is a collective: all ranks call it, in the same order.

    Raises (each method): LostRankError.
    """

    def __init__(self, place: Place, device: torch.device) -> None:
        super().__init__(place)
        if place.local_world_size == place.world_size:
            loopback = "lo0" if sys.platform == "darwin" else "lo"
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        import torch.distributed

        self._dist = torch.distributed
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)

        def join() -> None:
            store, rank, world_size = next(self._dist.rendezvous("env://", timeout=_LOADING))
            self._dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=world_size, timeout=_LOADING
            )
            self._steps = self._dist.new_group(backend="nccl" if on_gpu else "gloo", timeout=_STEP)

        _together(join)
        self.siblings = self._join_siblings()

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """`Group.sum`."""
        _together(lambda: self._dist.all_reduce(x, group=self._steps))
        return x

    def join_columns(
        self, x: torch.Tensor, width: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`Group.join_columns`."""
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        _together(lambda: self._dist.all_gather(parts, x, group=self._steps))
        return side_by_side(parts, width, out)

    def meet(self) -> None:
        """`Group.meet`."""
        self.least(0)

    def least(self, value: int) -> int:
        """`Group.least`."""
        tensor = torch.tensor([value])
        _together(lambda: self._dist.all_reduce(tensor, op=self._dist.ReduceOp.MIN))
        return int(tensor)

    def agree(self, text: str) -> str:
        """`Group.agree`."""
        size = torch.tensor([len(text.encode())])
        _together(lambda: self._dist.broadcast(size, src=0))
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == 0:
            data[:] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        _together(lambda: self._dist.broadcast(data, src=0))
        return bytes(data.tolist()).decode()

    def leave(self) -> None:
        """`Group.leave`."""
        self._dist.destroy_process_group()

    def _join_siblings(self) -> tuple[socket.socket, ...]:
        if self.rank:
            leader = socket.socket(socket.AF_UNIX)
            try:
                leader.connect(self.agree(""))
            except OSError as error:
                raise LostRankError("rank 0 cannot be reached") from error
            return (leader,)
        with (
            tempfile.TemporaryDirectory(prefix="quire-ranks-") as directory,
            socket.socket(socket.AF_UNIX) as listening,
        ):
            path = str(Path(directory) / "leader.sock")
            listening.bind(path)
            listening.listen(self.world_size)
            listening.settimeout(_JOIN_S)
            self.agree(path)
            try:
                return tuple(listening.accept()[0] for _ in range(1, self.world_size))
            except TimeoutError as error:
                raise LostRankError("a rank did not come") from error


def side_by_side(
    parts: Sequence[torch.Tensor], width: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The first `width` columns of [rows, columns] parts, in order; in `out` if that is given."""
    starts = range(0, parts[0].shape[1] * len(parts), parts[0].shape[1])
    used = [part[:, : max(0, width - at)] for part, at in zip(parts, starts, strict=True)]
    return torch.cat(used, dim=1, out=out)


def form(place: Place, device: torch.device) -> Group:
    """Joins the ranks of a replica; blocks until all are there. Raises LostRankError."""
    return Group(place) if place.world_size == 1 else Ranks(place, device)


def _together(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as error:  # what every backend raises, for a peer lost as for one too late
        raise LostRankError(str(error).partition("\n")[0]) from error
