"""Tensors in the midst of NaN: whoever reads around one is contaminated, whoever writes is seen."""

import torch

GUARD = 256


class Guarded:
    """A tensor with so many elements before and after it that no kernel may touch.

    Attributes:
        tensor: the one to use; contiguous, aligned to 16 bytes.
    """

    def __init__(self, values: torch.Tensor) -> None:
        """Holds a copy of these values."""
        count = values.numel()
        guard = torch.full((), float("nan"), device=values.device).to(values.dtype)
        self._memory = guard.repeat(count + 2 * GUARD)
        self.tensor = self._memory[GUARD : GUARD + count].view(values.shape)
        self.tensor.copy_(values)

    def untouched(self) -> bool:
        """Whether the surroundings are as they were."""
        around = torch.cat((self._memory[:GUARD], self._memory[-GUARD:])).float()
        return bool(around.isnan().all())


def random(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device
) -> torch.Tensor:
    """Normally distributed, the same on every device."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).to(device)


def mostly_equal(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether all but a few are the same to the bit: the same roundings in the same places.

    A sum in another order moves a value to the other side of a rounding now and then.
    """
    return bool((got == expected).float().mean() > 0.99)
