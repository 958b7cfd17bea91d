"""Paged attention for the other numbers of query heads to a KV head; minutes, so not each time.

1 Llama 2 7B · 3 SmolLM 135M · 5 Qwen2.5 14B · 7 Qwen2.5 0.5B, 7B · 8 Llama 3 70B · 16 Llama 3 405B
"""

from collections.abc import Iterator

from tests.kernels.gpu.compiler import AMPERE, HOPPER, CompileSpec
from tests.kernels.gpu.specs_attention import LONG, MIDDLE, SHORT, Layer, chunk, decodes

GROUPS = (1, 3, 5, 7, 8, 16)


def specs() -> Iterator[CompileSpec]:
    """On Hopper every height of a Q-block, and every kind of layer; on Ampere the tallest."""
    for group in GROUPS:
        for head_dim in (64, 128):
            layer = Layer(head_dim, group=group)
            for num_tokens in (LONG, MIDDLE, SHORT):
                yield chunk(HOPPER, layer, num_tokens)
            yield decodes(HOPPER, layer)
            yield chunk(AMPERE, layer, LONG)
            yield chunk(AMPERE, layer, SHORT)
        for layer in (
            Layer(128, "fp16", group=group),
            Layer(128, window=4096, group=group),
            Layer(256, window=1024, softcap=True, group=group),
            Layer(128, cache="fp8e4nv", group=group),
        ):
            yield chunk(HOPPER, layer, LONG)
            yield decodes(HOPPER, layer)
        yield chunk(HOPPER, Layer(64, "fp16", window=4096, group=group), SHORT)


SPECS = list(specs())
