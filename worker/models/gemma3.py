"""Gemma 3, the text models: Gemma 2 with normed heads, and a rotary embedding per kind of layer.

Most layers see a window and rotate by the local frequencies; some see all and rotate by the global
ones. The layers themselves are Gemma 2's.
"""

from dataclasses import replace

from worker.models.config import ModelConfig, parse_windows
from worker.models.fields import Fields
from worker.models.gemma2 import parse_gemma
from worker.models.rope import Rope

_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0


def parse(fields: Fields) -> ModelConfig:
    """Reads Gemma3ForCausalLM's fields; raises `UnsupportedModelError`."""
    common = parse_gemma(fields, max_position=131072)
    pattern = fields.positive_int("sliding_window_pattern", 6)
    windowed = [(index + 1) % pattern != 0 for index in range(common.num_layers)]
    everywhere, local = _ropes(fields)
    kinds = parse_windows(fields, common.layers, windowed)
    return replace(
        common,
        layers=tuple(
            replace(kind, rope=everywhere if kind.window is None else local) for kind in kinds
        ),
        head_norms=True,
        attention_softcap=fields.optional_positive_float("attn_logit_softcapping", None),
        logits_softcap=fields.optional_positive_float("final_logit_softcapping", None),
    )


def _ropes(fields: Fields) -> tuple[Rope, Rope]:
    """Of layers that see all and of those with a window; nested, or under the older flat names."""
    by_kind = fields.nested("rope_parameters")
    if "full_attention" in by_kind or "sliding_attention" in by_kind:
        return (
            Rope.parse_object(by_kind.nested("full_attention"), _GLOBAL_THETA),
            Rope.parse_object(by_kind.nested("sliding_attention"), _LOCAL_THETA),
        )
    local_theta = fields.positive_float("rope_local_base_freq", _LOCAL_THETA)
    return Rope.parse(fields, _GLOBAL_THETA), Rope(local_theta)
