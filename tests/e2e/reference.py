"""The oracle of the end-to-end tests: transformers' own greedy choices in float32.

An output is right if each of its tokens has the best logit given all tokens before it, which is
what `generate` does, and it ends where `generate` ends. One forward pass over prompt and output
checks that in a hundredth of the time that generating takes; the slow tier also generates.

Two tokens whose logits differ by less than `TIE` are both right: the order in which a float32 sum
is taken decides between them. `Reference.num_ties` counts the answers in which that was needed;
they are few, or something else is wrong.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GenerationConfig

from bench.float_model import float_model

TIE = 1e-4
MAX_TIES = 5
NUM_OUTPUT_TOKENS = 64


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, and whether the model's end token ends the answer."""

    token_ids: tuple[int, ...]
    ignore_eos: bool


@dataclass
class Reference:
    """transformers' model; remembers the answers it has accepted."""

    model_dir: Path
    num_ties: int = 0
    _accepted: set[tuple[Prompt, tuple[int, ...]]] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self._model = float_model(self.model_dir)
        self._eos = self._model.generation_config.eos_token_id
        # What a request's configuration leaves at None, `generate` takes from here.
        self._model.generation_config.eos_token_id = None

    def answer(self, prompt: Prompt) -> list[int]:
        """Up to 64 tokens, as `generate` chooses them."""
        ids = torch.tensor([prompt.token_ids])
        config = GenerationConfig(
            max_new_tokens=NUM_OUTPUT_TOKENS,
            do_sample=False,
            eos_token_id=None if prompt.ignore_eos else self._eos,
            pad_token_id=self._eos,
        )
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        answer: list[int] = out[0, len(prompt.token_ids) :].tolist()
        return answer

    def check(self, prompt: Prompt, output: list[int]) -> None:
        """Raise AssertionError unless `output` is the greedy answer, up to ties."""
        key = (prompt, tuple(output))
        if key in self._accepted:
            return
        gaps = self.gaps(prompt, output)
        worst = max(range(len(gaps)), key=gaps.__getitem__)
        assert gaps[worst] <= TIE, (
            f"prompt of {len(prompt.token_ids)} tokens: output token {worst} is "
            f"{gaps[worst]:.2e} below the best logit"
        )
        ended = not prompt.ignore_eos and output[-1] == self._eos
        assert len(output) == NUM_OUTPUT_TOKENS or ended, f"ended after {len(output)} tokens"
        assert prompt.ignore_eos or self._eos not in output[:-1], "went on past the end token"
        self.num_ties += gaps[worst] > 0
        assert self.num_ties <= MAX_TIES, f"ties decided more than {MAX_TIES} answers"
        self._accepted.add(key)

    def gaps(self, prompt: Prompt, output: list[int]) -> list[float]:
        """How far each output token's logit is below the best one, given the tokens before it."""
        ids = torch.tensor([[*prompt.token_ids, *output]])
        with torch.inference_mode():
            logits = self._model(ids, logits_to_keep=len(output) + 1).logits[0, :-1]
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        gaps: list[float] = (logits.max(dim=1).values - chosen).tolist()
        return gaps
