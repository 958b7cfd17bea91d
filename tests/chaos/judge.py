"""Whether two tokens were as good as equal where two runs of one request part.

A float32 sum taken in another order may swap two tokens whose scores are closer than its rounding;
a sequence that is computed again is summed in another order. So where runs part, the oracle
(transformers, float32) is asked for the scores of both tokens, and noise, penalties and bias are
added as `kernels.sampling` describes them: they may be `TIE` apart, and no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.float_model import float_model
from kernels.philox import gumbel_noise
from tests.chaos.traffic import Asked

TIE = 5e-4
"""Of scores; logits of other sums differ by a few hundred-thousandths."""


@dataclass
class Judge:
    """The oracle, loaded when it is first needed; counts what it has let pass."""

    model_dir: Path
    num_ties: int = 0

    @cached_property
    def _model(self) -> Any:
        return float_model(self.model_dir)

    def gap(
        self,
        asked: Asked,
        index: int,
        prompt: Sequence[int],
        output: Sequence[int],
        pair: tuple[int, int],
    ) -> float:
        """How far apart the scores of two tokens are, after this output of sample `index`."""
        scores = self.scores(asked, index, prompt, output)
        return abs(float(scores[pair[0]] - scores[pair[1]]))

    def scores(
        self, asked: Asked, index: int, prompt: Sequence[int], output: Sequence[int]
    ) -> torch.Tensor:
        """Of every token as the next one, [vocab_size]; filters and masks left out."""
        with torch.inference_mode():
            logits: torch.Tensor = self._model(
                torch.tensor([[*prompt, *output]]), logits_to_keep=1
            ).logits[0, 0]
        body = asked.body
        for token, bias in body.get("logit_bias", {}).items():
            logits[int(token)] += bias
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=len(logits))
        seen = counts > 0
        seen[torch.tensor(prompt)] = True
        penalty = body.get("repetition_penalty", 1.0)
        logits = torch.where(
            seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits
        )
        logits = logits - body.get("frequency_penalty", 0.0) * counts
        logits = logits - body.get("presence_penalty", 0.0) * (counts > 0)
        if asked.is_greedy:
            return logits
        seed = torch.tensor([body["seed"] + index])
        position = torch.tensor([len(prompt) + len(output)])
        noise = gumbel_noise(seed, position, len(logits))[0]
        drawn: torch.Tensor = logits / body["temperature"] + noise
        return drawn
