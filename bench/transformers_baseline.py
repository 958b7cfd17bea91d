"""What a user would try first: transformers' `generate`, on the same weights and threads.

    python -m bench.transformers_baseline --model DIR --threads 2 --mode alone
    python -m bench.transformers_baseline --model DIR --threads 2 --mode static

`alone`: one request of 256 in, 128 out. `static`: 32 requests of mixed length in batches of 8 by
order of arrival, padded on the left; a batch ends with its longest answer.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

STATIC_BATCH = 8


def _generate(model: Any, batch: list[Any]) -> None:
    import torch

    width = max(len(request.token_ids) for request in batch)
    padding = [width - len(request.token_ids) for request in batch]
    ids = torch.tensor([[0] * p + list(r.token_ids) for p, r in zip(padding, batch, strict=True)])
    mask = torch.tensor([[0] * p + [1] * (width - p) for p in padding])
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(request.output_len for request in batch),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )


def run(model_dir: Path, mode: str, seed: int) -> dict[str, float]:
    """Wanted output tokens per second: padding and over-run earn nothing."""
    from bench.float_model import float_model
    from bench.mixed_requests import mixed_requests, uniform_requests
    from bench.served import MIXED

    model = float_model(model_dir)
    model.generation_config.eos_token_id = None
    if mode == "alone":
        requests, size = uniform_requests(2, input_len=256, output_len=128, seed=seed), 1
    else:
        requests, size = mixed_requests(**MIXED, seed=seed), STATIC_BATCH
    _generate(model, uniform_requests(1, input_len=16, output_len=4, seed=seed))
    started = time.perf_counter()
    for first in range(0, len(requests), size):
        _generate(model, requests[first : first + size])
    duration_s = time.perf_counter() - started
    tokens = sum(request.output_len for request in requests)
    return {"duration_s": duration_s, "output_tokens_per_s": tokens / duration_s}


def main(
    model: Annotated[Path, typer.Option(help="Model directory.")],
    mode: Annotated[str, typer.Option(help="alone or static.")] = "alone",
    threads: int = 2,
    seed: int = 1,
) -> None:
    """Prints one line of JSON."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    print(json.dumps(run(model, mode, seed)))


if __name__ == "__main__":
    typer.run(main)
