"""A decoder computed by the CPU's own kernels: two calls per step where torch makes hundreds."""

import ctypes
import math
import time
from collections.abc import Sequence

import torch

from kernels.batch import AttentionBatch, RopeTable
from kernels.native import library
from kernels.native.packing import PackedLinear
from worker.kv_cache import KVCache
from worker.models.decoder import Decoder
from worker.models.gemma2 import SandwichLayer
from worker.models.layers import DecoderLayer, Norm, PreNormLayer, Projection
from worker.models.rope import Rope

_GATES = {"silu": 0, "gelu_tanh": 1}
_NO_NORM = library.Norm(None, 0.0)
_FINE = 2
"""Bytes of a rounded activation where one costs answers: before attention, and where a gate has
multiplied, so that a few are far greater than all others."""


class NativeDecoder:
    """`worker.executor.Model`; keys and values may be in float32 or float16.

    Attributes:
        num_threads: that compute a step.
    """

    def __init__(
        self,
        decoder: Decoder,
        kernels: ctypes.CDLL,
        *,
        num_threads: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        """Keeps the packed weights and nothing else of the decoder.

        Args:
            decoder: its linear maps packed, the rest in float32.
            kernels: from `kernels.native.library.load`.
            num_threads: that compute a step.
            max_model_len: the longest sequence it will see, in tokens.
            block_size: tokens of a block, a multiple of sixteen.
        """
        self._vocab_size = decoder.config.vocab_size
        self._hidden_size = decoder.config.hidden_size
        self.num_threads = num_threads
        self._engine = library.Engine(kernels, num_threads)
        self._described = _Description(decoder, max_model_len, block_size)
        self._kv: KVCache | None = None
        self._cache = library.Cache()

    def use_threads(self, count: int) -> None:
        """From the next step on so many compute; at most those it was made with."""
        self.num_threads = count
        self._engine.use(count)

    @torch.inference_mode()
    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`worker.executor.Model.forward`."""
        stream = self._layers(batch, kv)
        return self._logits(stream, batch.sample_index, is_normed=False, out=out)

    @torch.inference_mode()
    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        """`worker.executor.Model.hidden`."""
        stream = self._layers(batch, kv)
        self._engine.norm(self._described.decoder, stream.data_ptr(), len(stream))
        return stream

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`worker.executor.Model.logits`."""
        rows = torch.arange(len(hidden))
        return self._logits(hidden.contiguous(), rows, is_normed=True, out=None)

    def _layers(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        if self._kv is not kv:
            is_half = kv.keys[0].dtype == torch.float16
            self._cache = library.Cache(is_half, _addresses(kv.keys), _addresses(kv.values))
            self._kv = kv
        stream = torch.empty(batch.num_tokens, self._hidden_size)
        columns = [
            column.int().contiguous()
            for column in (batch.token_ids, batch.cu_seqlens, batch.seq_lens, batch.row_tables)
        ]
        step = library.Step(
            batch.num_tokens,
            batch.num_rows,
            *(column.data_ptr() for column in columns),
            columns[-1].shape[1],
        )
        self._engine.layers(self._described.decoder, step, self._cache, stream.data_ptr())
        return stream

    def _logits(
        self,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        *,
        is_normed: bool,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        logits = torch.empty(len(rows), self._vocab_size) if out is None else out
        rows = rows.long().contiguous()
        self._engine.head(
            self._described.decoder,
            hidden.data_ptr(),
            rows.data_ptr(),
            len(rows),
            is_normed,
            logits.data_ptr(),
        )
        return logits


def fastest_threads(
    model: NativeDecoder, kv: KVCache, most: int, seconds_each: float = 0.1
) -> dict[int, float]:
    """Seconds of a step that decodes one token, by number of threads; the model then uses the best.

    Not every core that the system counts is one: some are threads of another, some are taken.

    Args:
        model: whose steps are timed.
        kv: its cache, of which the null block is written.
        most: threads that it was made with; powers of two below it, and itself, are tried.
        seconds_each: how long, at least one step.
    """
    batch = AttentionBatch(
        token_ids=torch.zeros(1, dtype=torch.int32),
        positions=torch.zeros(1, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.ones(1, dtype=torch.int32),
        block_table=torch.zeros(1, 1, dtype=torch.int32),
        num_decodes=1,
        sample_index=torch.zeros(1, dtype=torch.int64),
    )
    model.forward(batch, kv)
    seconds = {}
    for count in sorted({1 << bit for bit in range(most.bit_length())} | {most}):
        model.use_threads(count)
        until, best = time.perf_counter() + seconds_each, math.inf
        while (began := time.perf_counter()) < until or best == math.inf:
            model.forward(batch, kv)
            best = min(best, time.perf_counter() - began)
        seconds[count] = best
    model.use_threads(min(seconds, key=seconds.__getitem__))
    return seconds


class _Description:
    """What the kernels are told of a decoder, and what keeps alive what they are pointed to.

    Attributes:
        decoder: the structure.
    """

    def __init__(self, decoder: Decoder, max_model_len: int, block_size: int) -> None:
        config = decoder.config
        self._kept: list[object] = []
        ropes = {
            rope: self._rope(rope, config.head_dim, max_model_len)
            for rope in {kind.rope for kind in config.layers}
        }
        layers = (library.Layer * config.num_layers)(
            *(
                self._layer(layer, ropes[kind.rope])
                for layer, kind in zip(decoder.layers, config.layers, strict=True)
            )
        )
        head = self._linear(decoder.head.projection)
        if config.tied_embeddings:
            embedding = head.parts[0]
        else:
            packed = decoder.embedding.weight
            assert isinstance(packed, PackedLinear), "it was read for torch"
            self._kept.append(packed)
            (embedding,) = (part.described() for part in packed.parts)
        self.decoder = library.Decoder(
            config.hidden_size,
            config.intermediate_size,
            config.vocab_size,
            config.num_layers,
            library.Heads(config.num_heads, config.num_kv_heads, config.head_dim, block_size),
            _GATES[config.activation],
            config.logits_softcap or 0.0,
            1.0 if decoder.embedding.scale is None else decoder.embedding.scale,
            embedding,
            layers,
            self._norm(decoder.norm),
            head,
        )

    def _layer(self, layer: DecoderLayer, rope: library.Rope) -> library.Layer:
        attended_norm = product_norm = query_norm = key_norm = _NO_NORM
        if isinstance(layer, SandwichLayer):
            attended_norm = self._norm(layer.attended_norm)
            product_norm = self._norm(layer.product_norm)
        else:
            assert isinstance(layer, PreNormLayer), "a layer of a family that is not known here"
        attention, mlp, scoring = layer.attention, layer.mlp, layer.attention.scoring
        if (norms := attention.norms) is not None:
            query_norm = library.Norm(self._address(norms.query), norms.eps)
            key_norm = library.Norm(self._address(norms.key), norms.eps)
        return library.Layer(
            self._norm(layer.attention_norm),
            query_norm,
            key_norm,
            attended_norm,
            self._norm(layer.mlp_norm),
            product_norm,
            self._linear(attention.qkv, _FINE),
            self._linear(attention.output.projection),
            self._linear(mlp.gate_up),
            self._linear(mlp.down.projection, _FINE),
            library.Scoring(scoring.scale, scoring.softcap or 0.0, scoring.window or 0),
            rope,
        )

    def _norm(self, norm: Norm) -> library.Norm:
        return library.Norm(self._address(norm.weight), norm.eps)

    def _rope(self, rope: Rope, head_dim: int, max_model_len: int) -> library.Rope:
        table = RopeTable.build(rope.inverse_frequencies(head_dim), max_model_len)
        return library.Rope(self._address(table.cos), self._address(table.sin))

    def _linear(self, projection: Projection, terms: int = 1) -> library.Linear:
        packed, bias = projection.weight, projection.bias
        assert isinstance(packed, PackedLinear), "it was read for torch"
        parts = (library.Matrix * len(packed.parts))(*(part.described() for part in packed.parts))
        self._kept.append(packed)
        rows = sum(part.shape[0] for part in packed.parts)
        address = None if bias is None else self._address(bias)
        return library.Linear(rows, len(parts), parts, address, terms)

    def _address(self, floats: torch.Tensor) -> int:
        floats = floats.float().contiguous()
        self._kept.append(floats)
        return floats.data_ptr()


def _addresses(tensors: Sequence[torch.Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
