"""The compiled kernels as Python calls them: their structures, and who owns what.

Each structure is the one of the same name in the headers. They hold addresses: whoever fills one
keeps what it points to.
"""

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache

from kernels.native.build import build, built, choose


class Matrix(Structure):
    """`QuireMatrix` of linear.h."""

    _fields_ = (
        ("rows", c_int64),
        ("columns", c_int64),
        ("kind", c_int32),
        ("group", c_int32),
        ("scales_halved", c_int32),
        ("values", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
    )


class Linear(Structure):
    """`QuireLinear` of linear.h."""

    _fields_ = (
        ("rows", c_int64),
        ("count", c_int64),
        ("parts", POINTER(Matrix)),
        ("bias", c_void_p),
        ("terms", c_int32),
    )


class Step(Structure):
    """`QuireStep` of attention.h."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_rows", c_int64),
        ("token_ids", c_void_p),
        ("cu_seqlens", c_void_p),
        ("seq_lens", c_void_p),
        ("block_tables", c_void_p),
        ("table_width", c_int64),
    )


class Scoring(Structure):
    """`QuireScoring` of attention.h."""

    _fields_ = (("scale", c_float), ("softcap", c_float), ("window", c_int64))


class Heads(Structure):
    """`QuireHeads` of attention.h."""

    _fields_ = (
        ("query", c_int64),
        ("kv", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
    )


class Norm(Structure):
    """`QuireNorm` of decoder.h."""

    _fields_ = (("weight", c_void_p), ("eps", c_float))


class Rope(Structure):
    """`QuireRope` of decoder.h."""

    _fields_ = (("cosines", c_void_p), ("sines", c_void_p))


class Layer(Structure):
    """`QuireLayer` of decoder.h."""

    _fields_ = (
        ("attention_norm", Norm),
        ("query_norm", Norm),
        ("key_norm", Norm),
        ("attended_norm", Norm),
        ("mlp_norm", Norm),
        ("product_norm", Norm),
        ("qkv", Linear),
        ("attended", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("scoring", Scoring),
        ("rope", Rope),
    )


class Decoder(Structure):
    """`QuireDecoder` of decoder.h."""

    _fields_ = (
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("vocab_size", c_int64),
        ("num_layers", c_int64),
        ("heads", Heads),
        ("gate", c_int32),
        ("logits_softcap", c_float),
        ("embedding_scale", c_float),
        ("embedding", Matrix),
        ("layers", POINTER(Layer)),
        ("norm", Norm),
        ("head", Linear),
    )


class Cache(Structure):
    """`QuireCache` of decoder.h."""

    _fields_ = (
        ("halved", c_int32),
        ("keys", POINTER(c_void_p)),
        ("values", POINTER(c_void_p)),
    )


class Engine:
    """Threads, and memory that grows to what the largest step needed."""

    def __init__(self, kernels: ctypes.CDLL, num_threads: int) -> None:
        """Starts the threads.

        Args:
            kernels: from `load`.
            num_threads: that compute a step, the caller's being one of them.
        """
        self._kernels = kernels
        self._engine = kernels.quire_engine_new(num_threads)

    def __del__(self) -> None:
        self._kernels.quire_engine_delete(self._engine)

    def use(self, num_threads: int) -> None:
        """From the next call on so many threads compute; at most those it was made with."""
        self._kernels.quire_engine_use(self._engine, num_threads)

    def layers(self, decoder: Decoder, step: Step, kv: Cache, stream: int) -> None:
        """Tokens to what the last norm reads; their keys and values go into the cache.

        Args:
            decoder: the model.
            step: the rows.
            kv: the cache.
            stream: address of [num_tokens, hidden_size] float32, written.
        """
        self._kernels.quire_layers(self._engine, decoder, step, kv, stream)

    def norm(self, decoder: Decoder, hidden: int, count: int) -> None:
        """The last norm, in place, of [count, hidden_size] float32 at this address."""
        self._kernels.quire_norm(self._engine, decoder, hidden, count)

    def head(
        self, decoder: Decoder, hidden: int, rows: int, count: int, is_normed: bool, logits: int
    ) -> None:
        """Logits of some rows.

        Args:
            decoder: the model.
            hidden: address of [any, hidden_size] float32.
            rows: address of [count] int64, which of them.
            count: how many.
            is_normed: whether the last norm has been there.
            logits: address of [count, vocab_size] float32, written.
        """
        self._kernels.quire_head(
            self._engine,
            decoder,
            hidden,
            rows,
            count,
            is_normed,
            logits,
        )


_ARGUMENTS = {
    "quire_engine_new": (c_int32,),
    "quire_engine_delete": (c_void_p,),
    "quire_engine_use": (c_void_p, c_int32),
    "quire_layers": (c_void_p, POINTER(Decoder), POINTER(Step), POINTER(Cache), c_void_p),
    "quire_norm": (c_void_p, POINTER(Decoder), c_void_p, c_int64),
    "quire_head": (
        *(c_void_p, POINTER(Decoder), c_void_p, c_void_p),
        *(c_int64, c_int32, c_void_p),
    ),
}


@cache
def load(isa: str = "auto") -> ctypes.CDLL:
    """The kernels for these instructions, compiled if they have to be.

    Raises NativeUnavailableError.
    """
    instructions = choose(isa)
    kernels = ctypes.CDLL(str(built(instructions) or build(instructions)))
    kernels.quire_engine_new.restype = c_void_p
    for name, arguments in _ARGUMENTS.items():
        function = getattr(kernels, name)
        function.argtypes = arguments
        if name != "quire_engine_new":
            function.restype = None
    return kernels
