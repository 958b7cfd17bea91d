"""What each way to compute the matrices costs in quality: perplexity on one text.

    python -m bench.perplexity --model DIR [--tokens 20000] [--save FILE]

The text is this project's own documentation, in windows of 1,024 tokens that know nothing of each
other; what counts is the ratio to float32, torch with the floats that the checkpoint stands for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.recording import Target, report

if TYPE_CHECKING:
    import torch

    from worker.executor import Model
    from worker.kv_cache import KVCache

WINDOW = 1024
CHUNK = 256
MOST = 1.005
"""Times the perplexity of float32."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mode:
    """A way to compute.

    Attributes:
        name: for people.
        cpu_backend: as the flag.
        quantization: as the flag; int8 and int4 start from the floats.
        kv_cache_dtype: as the flag.
    """

    name: str
    cpu_backend: str
    quantization: str
    kv_cache_dtype: str = "auto"


MODES = (
    Mode("float32, torch", "torch", "none"),
    Mode("float32", "native", "none"),
    Mode("as shipped, KV in float32", "native", "auto", "float32"),
    Mode("as shipped", "native", "auto"),
    Mode("int8", "native", "int8"),
    Mode("int4", "native", "int4"),
)


def text_tokens(directory: Path, count: int) -> list[int]:
    """The first tokens of the documentation."""
    from tokenizers import Tokenizer

    text = "\n\n".join(path.read_text() for path in sorted(ROOT.glob("docs/*.md")))
    tokens: list[int] = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    assert len(tokens) >= count, f"the text has {len(tokens)} tokens"
    return tokens[:count]


def perplexity(directory: Path, mode: Mode, tokens: list[int], threads: int) -> float:
    """exp of the mean of -ln p(token) over all tokens but the first of each window."""
    import torch

    from worker.backends import Wishes
    from worker.kv_cache import KVCache
    from worker.loader import open_model
    from worker.models.registry import checkpoint_tensors
    from worker.quantization import AtLoad, InFloats

    at_load = mode.quantization in ("int8", "int4")
    wishes = Wishes(
        mode.cpu_backend,
        threads,
        quantization="auto" if at_load else mode.quantization,
        kv_cache_dtype=mode.kv_cache_dtype,
    )
    cpu = torch.device("cpu")
    opened = open_model(directory, dtype="float32", device=cpu, max_model_len=WINDOW, wishes=wishes)
    if at_load:
        bits = int(mode.quantization.removeprefix("int"))
        shapes = checkpoint_tensors(opened.config)
        opened = replace(opened, weights=AtLoad(InFloats(opened.weights), shapes, bits))
    loaded, block_size = opened.load(), opened.backend.block_size
    kv = KVCache(loaded.config, WINDOW // block_size, block_size, opened.backend.kv_dtype, cpu)
    total, count = 0.0, 0
    for first in range(0, len(tokens), WINDOW):
        window = torch.tensor(tokens[first : first + WINDOW])
        for start, hidden in _hidden(loaded.model, window, kv):
            following = window[start + 1 : start + 1 + len(hidden)]
            logits = loaded.model.logits(hidden[: len(following)]).float()
            total -= float(logits.log_softmax(dim=1).gather(1, following[:, None]).double().sum())
            count += len(following)
    return math.exp(total / count)


def _hidden(
    model: "Model", window: "torch.Tensor", kv: "KVCache"
) -> Iterator[tuple[int, "torch.Tensor"]]:
    """What the head reads, chunk by chunk, and the position of each chunk's first token."""
    import torch

    from kernels.batch import AttentionBatch

    table = torch.arange(1, kv.num_blocks + 1, dtype=torch.int32)[None]
    for start in range(0, len(window), CHUNK):
        token_ids = window[start : start + CHUNK]
        end = start + len(token_ids)
        batch = AttentionBatch(
            token_ids=token_ids,
            positions=torch.arange(start, end),
            cu_seqlens=torch.tensor([0, len(token_ids)], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            block_table=table[:, : -(-end // kv.block_size)].contiguous(),
            num_decodes=0,
            sample_index=torch.empty(0, dtype=torch.int64),
        )
        yield start, model.hidden(batch, kv)


def main(
    model: Annotated[Path, typer.Option(help="Model directory.")],
    tokens: Annotated[int, typer.Option(help="Of the text.")] = 20_000,
    threads: int = 2,
    save: Annotated[Path | None, typer.Option(help="Where the figures go.")] = None,
) -> None:
    """Prints the perplexity of each mode, and its ratio to that of float32."""
    text = text_tokens(model, tokens)
    figures, targets = {}, []
    for mode in MODES:
        found = perplexity(model, mode, text, threads)
        figures[mode.name] = {"perplexity": found}
        ratio = found / figures[MODES[0].name]["perplexity"]
        figures[mode.name]["over float32"] = ratio
        if mode.quantization != "int4":
            targets.append(Target(f"{mode.name}, over float32", ratio, MOST))
    report({"tokens": len(text), **figures}, targets, save)


if __name__ == "__main__":
    typer.run(main)
