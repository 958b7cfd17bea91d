"""Decode steps of so many rows: launched kernel by kernel, or captured once and replayed.

A step is two halves, the forward pass and the sampler, so that the host may make the masks of
grammars between them. No size in either depends on anything but the number of rows.
"""

from collections.abc import Callable, Sequence

import torch

from worker.lane import Lane

Decode = Callable[[int, torch.Tensor | None], torch.Tensor]
"""Launches the forward pass of so many rows; gives their logits, where it was told or anywhere."""
SampleDecodes = Callable[[torch.Tensor, int], torch.Tensor]
"""Launches the sampler over the logits of so many rows; gives their tokens."""


class DecodeStep:
    """One step, in halves that can each be replayed.

    Attributes:
        forward: launches the forward pass; gives the logits.
        sample: launches the sampler over them; gives the tokens.
    """

    def __init__(
        self,
        decode: Decode,
        sample_decodes: SampleDecodes,
        num_rows: int,
        logits: torch.Tensor | None = None,
    ) -> None:
        """`logits` is where they go; None for a tensor of their own."""
        self._decode = decode
        self._sample_decodes = sample_decodes
        self._num_rows = num_rows
        self._logits = logits
        self.forward: Callable[[], torch.Tensor] = self._forward
        self.sample: Callable[[], torch.Tensor] = self._sample

    def record(self, lane: Lane) -> None:
        """From now on both halves are replayed."""
        self.forward = lane.record(self._forward)
        self.sample = lane.record(self._sample)

    def _forward(self) -> torch.Tensor:
        self._logits = self._decode(self._num_rows, self._logits)
        return self._logits

    def _sample(self) -> torch.Tensor:
        assert self._logits is not None, "the forward pass comes first"
        return self._sample_decodes(self._logits, self._num_rows)


class DecodeSteps:
    """Steps of any number of rows, and the captured ones by theirs."""

    def __init__(self, decode: Decode, sample_decodes: SampleDecodes) -> None:
        self._decode = decode
        self._sample_decodes = sample_decodes
        self._captured: dict[int, DecodeStep] = {}
        self._logits: torch.Tensor | None = None

    @property
    def buckets(self) -> tuple[int, ...]:
        """Numbers of rows that were captured, ascending."""
        return tuple(sorted(self._captured))

    def captured(self, num_rows: int) -> DecodeStep | None:
        """The one to replay; None where none of that many rows was captured."""
        return self._captured.get(num_rows)

    def step(self, num_rows: int) -> DecodeStep:
        """One that is launched kernel by kernel."""
        return DecodeStep(self._decode, self._sample_decodes, num_rows)

    def capture(
        self, buckets: Sequence[int], lane: Lane, order_null_rows: Callable[[int], None]
    ) -> None:
        """Records a step for each number of rows; the largest first, so that they share.

        `order_null_rows` makes so many rows of no sequence the next step's.
        """
        for bucket in sorted(buckets, reverse=True):
            order_null_rows(bucket)
            logits = self._static_logits(bucket)
            step = DecodeStep(self._decode, self._sample_decodes, bucket, logits)
            step.forward()  # compiles what is not compiled yet
            step.sample()
            lane.drain()
            step.record(lane)
            self._captured[bucket] = step

    def clear(self) -> None:
        """Forgets what was captured, and the memory that it shared."""
        self._captured.clear()
        self._logits = None

    def _static_logits(self, num_rows: int) -> torch.Tensor:
        """Where a captured step leaves its logits: the same for all, since one runs after another.

        They are the largest thing that outlives a forward pass; a graph that had its own would
        keep that memory for ever.
        """
        if self._logits is None or len(self._logits) < num_rows:
            self._logits = torch.empty_like(self._decode(num_rows, None))
        return self._logits[:num_rows]
