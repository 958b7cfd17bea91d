"""Which families there are: the one place that knows an architecture's name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kernels.ops import REFERENCE, Ops
from worker.models import gemma2, gemma3, llama, mistral, qwen2, qwen3
from worker.models.config import ModelConfig
from worker.models.decoder import Decoder
from worker.models.fields import Fields, UnsupportedModelError
from worker.models.layers import PreNormLayer, ReadLayer
from worker.models.weights import Weights, tensor_shapes


@dataclass(frozen=True)
class Family:
    """What is an architecture's own.

    Attributes:
        parse: reads its fields of config.json.
        read_layer: reads one of its layers.
    """

    parse: Callable[[Fields], ModelConfig]
    read_layer: ReadLayer = PreNormLayer.read


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(llama.parse),
    "MistralForCausalLM": Family(mistral.parse),
    "Qwen2ForCausalLM": Family(qwen2.parse),
    "Qwen3ForCausalLM": Family(qwen3.parse),
    "Gemma2ForCausalLM": Family(gemma2.parse, gemma2.SandwichLayer.read),
    "Gemma3ForCausalLM": Family(gemma3.parse, gemma2.SandwichLayer.read),
}


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Reads the object in config.json.

    Raises:
        UnsupportedModelError: a field is missing, malformed or asks for what is not supported.
    """
    names, known = raw.get("architectures"), ", ".join(FAMILIES)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise UnsupportedModelError(
            f"architectures is {names!r}; it must name one supported architecture: {known}"
        )
    if names[0] not in FAMILIES:
        raise UnsupportedModelError(f"architecture {names[0]!r} is not supported; known: {known}")
    return FAMILIES[names[0]].parse(Fields(raw))


def build_model(config: ModelConfig, weights: Weights, ops: Ops, max_model_len: int) -> Decoder:
    """Reads the weights of a model; see `Decoder`."""
    read_layer = FAMILIES[config.architecture].read_layer
    return Decoder(config, read_layer, weights, ops, max_model_len)


def checkpoint_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor that a checkpoint of this model holds."""
    return tensor_shapes(lambda weights: build_model(config, weights, REFERENCE, max_model_len=1))
