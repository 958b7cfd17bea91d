"""From logits to tokens: the functions of the sampler where the host reaches the logits.

A row's logits pass through these steps, in this order (that of vLLM):

    1. logit bias                  l[t] += bias[t]
    2. stop tokens banned          l[t] = -∞ while the output is shorter than min_tokens
    3. repetition penalty r        l[t] /= r if l[t] > 0 else l[t] *= r    for t in prompt or output
    4. frequency f, presence p     l[t] -= f · count(t) + p · [count(t) > 0]         count in output
    5. temperature T               z = (l - max l) / T;  T = 0 is greedy: argmax l, and we are done
    6. min-p                       keep z ≥ log(min_p): at least that share of the likeliest
    7. top-k                       keep the k likeliest of what is left
    8. top-p                       keep the fewest likeliest with ≥ top_p of what is left
    9. Gumbel-max                  argmax (z + noise(seed, position)) over what is kept

Equal logits rank by token id, lowest first. Step 9 draws from softmax(z) over the kept tokens, and
its noise is a pure function (`kernels.philox`): the same seed, position and logits give the same
token in any batch. A row knows nothing of its neighbours in any step.

Log-probabilities are of the raw logits, before step 1.

`penalize_specification` and `draw_specification` are the text, for any device; the costly steps
take the fused loops of `kernels.sampling_cpu`. A device that works on its own has
`kernels.step_sampling` instead.
"""

from dataclasses import dataclass

import torch

from kernels.philox import gumbel_noise
from kernels.sampling_inputs import DrawParams, PenaltyTables


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of chosen tokens and of the likeliest ones.

    Attributes:
        logprob: [rows] float32, of the chosen token.
        rank: [rows] int64, 1 for the likeliest token of the vocabulary.
        top_token_id: [rows, k] int64, likeliest first.
        top_logprob: [rows, k] float32.
    """

    logprob: torch.Tensor
    rank: torch.Tensor
    top_token_id: torch.Tensor
    top_logprob: torch.Tensor


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, the lowest id where several tie.

    A row with a NaN yields the index of the first NaN.

    Args:
        logits: [rows, vocab_size] float32.

    Returns:
        [rows] int64.
    """
    # numpy's argmax runs along the row in vector registers; torch's takes ten times as long.
    return torch.from_numpy(logits.numpy().argmax(axis=1))


def add_at_(
    logits: torch.Tensor, row: torch.Tensor, token_id: torch.Tensor, value: torch.Tensor
) -> None:
    """Steps 1 and 2: ``logits[row[i], token_id[i]] += value[i]`` in place; -∞ bans.

    Args:
        logits: [rows, vocab_size] float32.
        row, token_id: [entries] int64.
        value: [entries] float32.
    """
    logits.index_put_((row, token_id), value, accumulate=True)


def penalize_(
    logits: torch.Tensor,
    row: torch.Tensor,
    slot: torch.Tensor,
    tables: PenaltyTables,
    penalties: torch.Tensor,
) -> None:
    """Steps 3 and 4, in place on some rows.

    Args:
        logits: [rows, vocab_size] float32, contiguous.
        row: [penalized] int64, which rows.
        slot: [penalized] int64, where in the tables each of them is.
        tables: what has been seen.
        penalties: [3, penalized] float32: repetition, presence, frequency.
    """
    from kernels.sampling_cpu import penalize_rows  # numba: wanted on a CPU alone

    penalize_rows(logits, row, slot, tables, penalties)


def penalize_specification(
    logits: torch.Tensor, slot: torch.Tensor, tables: PenaltyTables, penalties: torch.Tensor
) -> torch.Tensor:
    """Steps 3 and 4 as written in the module's text, for logits of the penalized rows alone."""
    repetition, presence, frequency = penalties[:, :, None]
    count = tables.output_count[slot]
    in_output = count > 0
    factor = torch.where(tables.in_prompt[slot] | in_output, repetition, 1.0)
    penalized = torch.where(logits > 0, logits / factor, logits * factor)
    return penalized.sub(frequency * count + presence * in_output)


def draw(logits: torch.Tensor, params: DrawParams, position: torch.Tensor) -> torch.Tensor:
    """Steps 5 to 9: one token for each row.

    Args:
        logits: [rows, vocab_size] float32, contiguous, after steps 1 to 4.
        params: how each row chooses.
        position: [rows] int64, the index that the token will take in its sequence.

    Returns:
        [rows] int64.
    """
    from kernels.sampling_cpu import draw_rows  # numba: wanted on a CPU alone

    return draw_rows(logits, params, position)


def draw_specification(
    logits: torch.Tensor, params: DrawParams, position: torch.Tensor
) -> torch.Tensor:
    """`draw` as written in the module's text: sorts and draws noise for the whole vocabulary."""
    z = logits - logits.amax(dim=1, keepdim=True)
    z /= params.temperature[:, None]
    z.masked_fill_(z.exp() < params.min_p[:, None], -torch.inf)
    ranked, order = z.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(z.shape[1], device=z.device)
    top_k = torch.where(params.top_k > 0, params.top_k, z.shape[1])
    ranked.masked_fill_(rank >= top_k[:, None], -torch.inf)
    probability = ranked.double().exp()
    before = probability.cumsum(dim=1) - probability
    wanted = params.top_p.double() * probability.sum(dim=1)
    ranked.masked_fill_((before >= wanted[:, None]) & (params.top_p < 1)[:, None], -torch.inf)
    kept = torch.full_like(z, -torch.inf).scatter_(1, order, ranked)
    return (kept.double() + gumbel_noise(params.seed, position, z.shape[1])).argmax(dim=1)


def token_logprobs(logits: torch.Tensor, token_id: torch.Tensor, k: int) -> TokenLogprobs:
    """Log-probabilities of raw logits.

    Args:
        logits: [rows, vocab_size], as the model made them.
        token_id: [rows] int64, the chosen tokens.
        k: how many of the likeliest to name; 0 for none.
    """
    logits = logits.float()
    total = logits.logsumexp(dim=1, keepdim=True)
    chosen = logits.gather(1, token_id[:, None])
    top, top_token_id = logits.topk(min(k, logits.shape[1]), dim=1)
    return TokenLogprobs(
        logprob=(chosen - total)[:, 0],
        rank=(logits > chosen).sum(dim=1) + 1,
        top_token_id=top_token_id,
        top_logprob=top - total,
    )
