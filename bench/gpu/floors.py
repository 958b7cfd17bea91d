"""What memory and arithmetic alone would take: the least time for a step, from measured rates."""

from dataclasses import dataclass

from bench.gpu.device import Rates
from bench.gpu.scale import Load
from worker.kv_cache import KVCache
from worker.loader import LoadedModel


@dataclass(frozen=True, slots=True)
class Floors:
    """Of one model on one device.

    Attributes:
        rates: the device's.
        streamed_bytes: weights that every step reads: all but an embedding that is only looked up.
        flops_per_token: of the matrices of the layers.
        head_flops: of the head, for each row that samples.
        attention_flops: for each pair of a token and a position that it sees.
        kv_bytes: of one token.
    """

    rates: Rates
    streamed_bytes: int
    flops_per_token: int
    head_flops: int
    attention_flops: int
    kv_bytes: int

    @classmethod
    def of(cls, loaded: LoadedModel, rates: Rates) -> "Floors":
        """A model's."""
        config, itemsize = loaded.config, loaded.dtype.itemsize
        vocabulary = config.vocab_size * config.hidden_size
        streamed = loaded.weight_bytes - (0 if config.tied_embeddings else vocabulary * itemsize)
        return cls(
            rates=rates,
            streamed_bytes=streamed,
            flops_per_token=2 * (streamed // itemsize - vocabulary),
            head_flops=2 * vocabulary,
            attention_flops=4 * config.num_layers * config.num_heads * config.head_dim,
            kv_bytes=KVCache.bytes_per_block(config, 1, loaded.dtype),
        )

    def decode_s(self, rows: int, context: float) -> float:
        """A decode step: weights are read or multiplied, what takes longer, then KV is read."""
        read = self.streamed_bytes / self.rates.bytes_per_s
        multiplied = rows * (self.flops_per_token + self.head_flops) / self.rates.flops_per_s
        return max(read, multiplied) + rows * context * self.kv_bytes / self.rates.bytes_per_s

    def prefill_s(self, tokens: int) -> float:
        """A whole prompt."""
        seen = tokens * (tokens + 1) // 2
        flops = tokens * self.flops_per_token + self.head_flops + seen * self.attention_flops
        return flops / self.rates.flops_per_s

    def load_s(self, load: Load) -> float:
        """Requests that all come at once and all have a slot."""
        decodes = (load.output_len - 1) * self.decode_s(
            load.count, load.input_len + load.output_len / 2
        )
        return load.count * self.prefill_s(load.input_len) + decodes
