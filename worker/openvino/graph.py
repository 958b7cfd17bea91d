"""A decoder as two OpenVINO graphs: the layers over the paged cache, and the head.

The layers that torch would run one op at a time (`worker.models.layers`) become nodes whose
constants are the same tensors; OpenVINO fuses them and lays the weights out for this CPU. Attention
is its PagedAttention operation, which takes the step as the plan has it: flattened rows, tokens
that are there already, and block tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch
from openvino import Node, Output, PartialShape, Shape, Type
from openvino import opset13 as op
from openvino.op import Parameter, _PagedAttentionExtension

from kernels.quantized import Matrix, QuantizedMatrix, Stacked
from worker.models.config import Activation, ModelConfig
from worker.models.decoder import Decoder
from worker.models.gemma2 import SandwichLayer
from worker.models.layers import MLP, Attention, DecoderLayer, Norm, PreNormLayer, Projection
from worker.models.rope import Rope

STEP_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
"""Of each row: tokens in the cache, first token of the step, blocks one after another, first of
them."""

_MIDDLE = 8
"""Of the codes of four bits."""

_INT32_NONE = np.empty(0, np.int32)
_FLOAT_NONE = np.empty(0, np.float32)


@dataclass(frozen=True)
class _Step:
    """Nodes that all layers share.

    Attributes:
        rows: the inputs named in `STEP_INPUTS`.
        longest: tokens of the longest context, a scalar.
        angles: cosines and sines of a rotary embedding, [num_tokens, 1, head_dim / 2] each.
    """

    rows: tuple[Parameter, ...]
    longest: Parameter
    angles: dict[Rope, tuple[Node, Node]]


def layers_graph(decoder: Decoder) -> ov.Model:
    """Embedded tokens to what the head reads.

    Inputs: "embedded" [num_tokens, hidden_size] float32; "positions" [num_tokens] int32; those of
    `STEP_INPUTS`, int32; "max_context_len", a scalar; and "key_cache.i" and "value_cache.i" of each
    layer, whose number format and shape the compiled model has. Output: [num_tokens, hidden_size].
    """
    config = decoder.config
    stream = _parameter("embedded", Type.f32, [-1, config.hidden_size])
    positions = _parameter("positions", Type.i32, [-1])
    step = _Step(
        rows=tuple(_parameter(name, Type.i32, [-1]) for name in STEP_INPUTS),
        longest=_parameter("max_context_len", Type.i32, []),
        angles={kind.rope: _angles(kind.rope, config, positions) for kind in config.layers},
    )
    inputs = [stream, positions, *step.rows, step.longest]
    residual: Node = stream
    for index, (layer, kind) in enumerate(zip(decoder.layers, config.layers, strict=True)):
        caches = [
            _parameter(f"{name}_cache.{index}", Type.dynamic, [-1, config.num_kv_heads, -1, -1])
            for name in ("key", "value")
        ]
        inputs += caches
        residual = _Layer(config, kind.rope, step, caches)(layer, residual)
    return ov.Model([_norm(residual, decoder.norm)], inputs, "layers")


def head_graph(decoder: Decoder) -> ov.Model:
    """Rows of what `layers_graph` makes to logits: [rows, hidden_size] to [rows, vocab_size]."""
    config = decoder.config
    rows = _parameter("rows", Type.f32, [-1, config.hidden_size])
    logits = _linear(rows, decoder.head.projection)
    if config.logits_softcap is not None:
        cap = _constant(np.float32(config.logits_softcap))
        logits = op.multiply(op.tanh(op.divide(logits, cap)), cap)
    return ov.Model([logits], [rows], "head")


@dataclass(frozen=True)
class _Layer:
    """Builds the nodes of one layer.

    Attributes:
        config: dimensions and constants.
        rope: its rotary embedding.
        step: what it shares with the others.
        caches: its keys and its values.
    """

    config: ModelConfig
    rope: Rope
    step: _Step
    caches: Sequence[Parameter]

    def __call__(self, layer: DecoderLayer, residual: Node) -> Node:
        """The stream after the layer."""
        if isinstance(layer, SandwichLayer):
            attended = self._attention(layer.attention, _norm(residual, layer.attention_norm))
            residual = op.add(residual, _norm(attended, layer.attended_norm))
            product = self._mlp(layer.mlp, _norm(residual, layer.mlp_norm))
            return op.add(residual, _norm(product, layer.product_norm))
        assert isinstance(layer, PreNormLayer), "a layer of a family that is not known here"
        attended = self._attention(layer.attention, _norm(residual, layer.attention_norm))
        residual = op.add(residual, attended)
        return op.add(residual, self._mlp(layer.mlp, _norm(residual, layer.mlp_norm)))

    def _attention(self, attention: Attention, x: Node) -> Node:
        config, norms = self.config, attention.norms
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        widths = _constant(np.array([size * config.head_dim for size in sizes], np.int64))
        projected = _linear(x, attention.qkv)
        query, key, value = op.variadic_split(projected, _axis(1), widths).outputs()
        query = self._rotated(query, config.num_heads, None if norms is None else norms.query)
        key = self._rotated(key, config.num_kv_heads, None if norms is None else norms.key)
        attended = self._paged_attention(query, key, value, attention)
        return _linear(attended, attention.output.projection)

    def _rotated(self, x: Output, num_heads: int, norm: torch.Tensor | None) -> Node:
        """Heads, normed where they are, turned by their positions' angles."""
        config = self.config
        heads = op.reshape(x, _shape(-1, num_heads, config.head_dim), special_zero=False)
        if norm is not None:
            heads = _rms_norm(heads, norm, config.rms_norm_eps)
        cos, sin = self.step.angles[self.rope]
        low, high = op.split(heads, _axis(2), 2).outputs()
        turned = op.concat(
            [
                op.subtract(op.multiply(low, cos), op.multiply(high, sin)),
                op.add(op.multiply(high, cos), op.multiply(low, sin)),
            ],
            axis=2,
        )
        return op.reshape(turned, _shape(-1, num_heads * config.head_dim), special_zero=False)

    def _paged_attention(self, query: Node, key: Node, value: Output, attention: Attention) -> Node:
        config, scoring = self.config, attention.scoring
        none, no_floats = _constant(_INT32_NONE), _constant(_FLOAT_NONE)
        zero = _constant(np.int32(0))
        arguments = {
            "scale": _constant(np.float32(scoring.scale)),
            "sliding_window": _constant(np.int32(scoring.window or 0)),
            "alibi_slopes": no_floats,
            "max_context_len": self.step.longest,
            # A scalar here makes steps of several rows leave their output as it was, in silence.
            "score_aggregation_window": none,
            "rotated_block_indices": none,
            "rotation_deltas": none,
            "rotation_trig_lut": no_floats,
            "xattention_threshold": no_floats,
            "xattention_block_size": zero,
            "xattention_stride": zero,
            "sinks": no_floats,
            "adaptive_rkv_start_size": zero,
            "adaptive_rkv_evictable_sizes": none,
            "adaptive_rkv_diversity_block_set_indices": none,
            "adaptive_rkv_diversity_block_set_begins": none,
            "token_type_ids": none,
            "qq_bias": _constant(np.empty(0, np.uint8)),
            "qq_bias_begins": none,
        }
        nodes = (query, key, value, *self.caches, *self.step.rows, *arguments.values())
        node = _PagedAttentionExtension([_output(each) for each in nodes])
        info = node.get_rt_info()
        for kind in ("k", "v"):
            info[f"num_{kind}_heads"] = config.num_kv_heads
            info[f"{kind}_head_size"] = config.head_dim
        return _output(node)

    def _mlp(self, mlp: MLP, x: Node) -> Node:
        gate, up = op.split(_linear(x, mlp.gate_up), _axis(1), 2).outputs()
        product = op.multiply(_activated(gate, self.config.activation), up)
        return _linear(product, mlp.down.projection)


def _activated(x: Output, activation: Activation) -> Node:
    return op.swish(x) if activation == "silu" else op.gelu(x, "tanh")


def _angles(rope: Rope, config: ModelConfig, positions: Parameter) -> tuple[Node, Node]:
    frequencies = _constant(rope.inverse_frequencies(config.head_dim).numpy()[None, None])
    at = op.reshape(op.convert(positions, Type.f32), _shape(-1, 1, 1), special_zero=False)
    angles = op.multiply(at, frequencies)
    return op.cos(angles), op.sin(angles)


def _norm(x: Node, norm: Norm) -> Node:
    return _rms_norm(x, norm.weight, norm.eps)


def _rms_norm(x: Node, weight: torch.Tensor, eps: float) -> Node:
    mean = op.reduce_mean(op.multiply(x, x), _shape(-1), keep_dims=True)
    root = op.sqrt(op.add(mean, _constant(np.float32(eps))))
    normed = op.multiply(x, op.divide(_constant(np.float32(1)), root))
    return op.multiply(normed, _constant(weight.float().numpy()))


def _linear(x: Node | Output, projection: Projection) -> Node:
    weight = projection.weight
    parts = weight.parts if isinstance(weight, Stacked) else (weight,)
    products = [_product(x, part) for part in parts]
    product = products[0] if len(parts) == 1 else op.concat(products, axis=1)
    if projection.bias is None:
        return product
    return op.add(product, _constant(projection.bias.numpy()))


def _product(x: Node | Output, matrix: Matrix) -> Node:
    """x · Wᵀ. Offsets are multiplied apart, by the sums of groups of x: as zeros of the codes they
    would have to be divided by the scales, and these may be nothing."""
    if isinstance(matrix, torch.Tensor):
        return op.matmul(x, _constant(matrix.numpy()), False, True)
    product = op.matmul(x, _centred(matrix), False, True)
    if matrix.offset is None:
        return product
    groups = _shape(-1, matrix.scale.shape[1], matrix.group_size)
    sums = op.reduce_sum(op.reshape(x, groups, special_zero=False), _axis(2))
    offset = matrix.offset.float()
    if matrix.bits == 4:
        offset = offset + _MIDDLE * matrix.scale.float()
    return op.add(product, op.matmul(sums, _constant(offset.numpy()), False, True))


def _centred(matrix: QuantizedMatrix) -> Node:
    """scale · (code − zero), where codes of four bits have their middle for a zero."""
    rows, columns = matrix.shape
    grouped = [rows, columns // matrix.group_size, matrix.group_size]
    if matrix.bits == 4:
        codes = op.convert(_four_bits(matrix.codes.numpy(), grouped), Type.f32)
        middle = _four_bits(np.array([_MIDDLE], np.uint8), [1, 1, 1])
        values = op.subtract(codes, op.convert(middle, Type.f32))
    else:
        values = op.convert(_constant(matrix.codes.numpy().reshape(grouped)), Type.f32)
    scaled = op.multiply(values, _constant(matrix.scale.float().numpy()[:, :, None]))
    return op.reshape(scaled, _shape(rows, columns), special_zero=False)


def _four_bits(codes: npt.NDArray[np.uint8], shape: list[int]) -> Node:
    """A copy: a tensor of this kind would not keep an array's memory alive."""
    tensor = ov.Tensor(Type.u4, Shape(shape))
    tensor.data.reshape(-1)[:] = codes.reshape(-1)
    return op.constant(tensor)


def _parameter(name: str, kind: Type, shape: list[int]) -> Parameter:
    parameter = op.parameter(PartialShape(shape) if shape else Shape([]), kind)
    parameter.output(0).get_tensor().set_names({name})
    parameter.set_friendly_name(name)
    return parameter


def _constant(value: npt.NDArray[np.generic] | np.generic) -> Node:
    """The array's own memory, where it has any."""
    return op.constant(value, shared_memory=isinstance(value, np.ndarray) and value.size > 0)


def _axis(axis: int) -> Node:
    return _constant(np.int64(axis))


def _shape(*sizes: int) -> Node:
    return _constant(np.array(sizes, np.int64))


def _output(node: Node | Output) -> Output:
    return node.output(0) if isinstance(node, Node) else node
