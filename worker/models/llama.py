"""The Llama architecture: RMSNorm, rotary attention with grouped heads, a SiLU-gated MLP.

Serves Llama 2 and 3, SmolLM2, TinyLlama and Mistral. Query, key and value projections are one
matrix, gate and up are one matrix: fewer, larger multiplications per layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kernels import ops
from kernels.batch import AttentionBatch, RopeTable, Scoring, StepTensors
from kernels.linear import linear, pack_weight
from kernels.warm_up import warm_up
from worker.kv_cache import KVCache
from worker.models.config import ModelConfig

# Reads one tensor of the checkpoint by its name, already in the wanted type and on the device.
ReadTensor = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Projection:
    """One linear map; the weight is in the device's own layout (`kernels.linear`).

    Attributes:
        weight: [out_features, in_features], perhaps opaque.
        bias: [out_features] or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer.

    Attributes:
        attention_norm: [hidden], before attention.
        qkv: hidden to queries, keys and values.
        output: attended heads to hidden.
        mlp_norm: [hidden], before the MLP.
        gate_up: hidden to gates and ups.
        down: intermediate to hidden.
    """

    attention_norm: torch.Tensor
    qkv: Projection
    output: Projection
    mlp_norm: torch.Tensor
    gate_up: Projection
    down: Projection


def checkpoint_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor that a checkpoint of this model holds."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    projections = {
        "self_attn.q_proj": (heads, hidden, config.attention_bias),
        "self_attn.k_proj": (kv_heads, hidden, config.attention_bias),
        "self_attn.v_proj": (kv_heads, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, heads, config.attention_bias),
        "mlp.gate_proj": (mlp, hidden, config.mlp_bias),
        "mlp.up_proj": (mlp, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, mlp, config.mlp_bias),
    }
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        for name, (out_features, in_features, bias) in projections.items():
            shapes[f"{prefix}{name}.weight"] = (out_features, in_features)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (out_features,)
    return shapes


class LlamaModel:
    """The weights and the forward pass.

    Attributes:
        config: dimensions and constants.
        layers: decoder layers, in order.
    """

    def __init__(self, config: ModelConfig, read: ReadTensor, max_model_len: int) -> None:
        """Reads every tensor once, fusing and packing layer by layer; compiles the kernels.

        Args:
            config: dimensions and constants.
            read: gives a tensor of the checkpoint by name; see `checkpoint_tensors`.
            max_model_len: the longest sequence it will see, in tokens.
        """
        self.config = config
        self.layers = tuple(_read_layer(config, read, i) for i in range(config.num_layers))
        self._embedding = read("model.embed_tokens.weight")
        self._norm = read("model.norm.weight")
        # A tied head shares values, not memory, where the packed layout differs from the plain one.
        head = self._embedding if config.tied_embeddings else read("lm_head.weight")
        self._head = Projection(pack_weight(head), None)
        device, dtype = self._embedding.device, self._embedding.dtype
        self._rope = RopeTable.build(config.inverse_frequencies().to(device), max_model_len)
        self._scoring = Scoring(scale=config.head_dim**-0.5)
        self._ops = ops.select(device, dtype)
        warm_up(self._ops, device, dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights occupy."""
        unique = {id(tensor): tensor for tensor in self._tensors()}
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in unique.values())

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from (self._embedding, self._norm, self._head.weight)
        for layer in self.layers:
            yield from (layer.attention_norm, layer.mlp_norm)
            for projection in (layer.qkv, layer.output, layer.gate_up, layer.down):
                yield projection.weight
                if projection.bias is not None:
                    yield projection.bias

    @torch.inference_mode()
    def forward(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        """One step: writes the KV of every token, returns the logits of the sampled rows.

        Args:
            batch: the step's rows.
            kv: the paged cache; blocks in the batch's tables are written and read.

        Returns:
            [num_sampled, vocab_size] float32.
        """
        eps, run = self.config.rms_norm_eps, self._ops
        step = StepTensors(batch, kv.block_size, self._rope)
        residual = torch.nn.functional.embedding(batch.token_ids, self._embedding)
        hidden = torch.zeros_like(residual)
        for layer, keys, values in zip(self.layers, kv.keys, kv.values, strict=True):
            normed = run.add_rms_norm(hidden, residual, layer.attention_norm, eps)
            query = run.rope_and_store(layer.qkv(normed), step, keys, values, None)
            attended = run.paged_attention(query, keys, values, step, self._scoring)
            normed = run.add_rms_norm(layer.output(attended), residual, layer.mlp_norm, eps)
            hidden = layer.down(run.silu_mul(layer.gate_up(normed)))
        sampled = residual[batch.sample_index] + hidden[batch.sample_index]
        return self._head(run.rms_norm(sampled, self._norm, eps)).float()


def _read_layer(config: ModelConfig, read: ReadTensor, index: int) -> Layer:
    prefix = f"model.layers.{index}."

    def fused(*names: str, bias: bool) -> Projection:
        weight = torch.cat([read(f"{prefix}{name}.weight") for name in names])
        biases = [read(f"{prefix}{name}.bias") for name in names] if bias else []
        return Projection(pack_weight(weight), torch.cat(biases) if bias else None)

    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return Layer(
        attention_norm=read(prefix + "input_layernorm.weight"),
        qkv=fused(*attention, bias=config.attention_bias),
        output=fused("self_attn.o_proj", bias=config.attention_bias),
        mlp_norm=read(prefix + "post_attention_layernorm.weight"),
        gate_up=fused("mlp.gate_proj", "mlp.up_proj", bias=config.mlp_bias),
        down=fused("mlp.down_proj", bias=config.mlp_bias),
    )
