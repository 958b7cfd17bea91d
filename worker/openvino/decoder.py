"""A decoder compiled by OpenVINO: one call per step where torch makes hundreds."""

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch

from kernels.batch import AttentionBatch
from worker.kv_cache import KVCache
from worker.models.decoder import Decoder
from worker.models.vocabulary import Embedding
from worker.openvino.graph import head_graph, layers_graph

Int32Column = npt.NDArray[np.int32]


class CompiledDecoder:
    """`worker.executor.Model`; what it returns is overwritten by its next call."""

    def __init__(self, decoder: Decoder, num_threads: int) -> None:
        """Compiles.

        Args:
            decoder: the model, its weights as they were read: in float32 or in codes.
            num_threads: that compute a step.

        Raises RuntimeError if OpenVINO cannot.
        """
        properties = {
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            # Workers of one machine, and others, would pin theirs to the same cores.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            # What codes are multiplied with stays as it is: rounded to eight bits in groups of 32,
            # which it does by itself, greedy answers of a small model change.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        core = ov.Core()
        self._embedding: Embedding = decoder.embedding
        self._layers = core.compile_model(layers_graph(decoder), "CPU", properties)
        self._head = core.compile_model(head_graph(decoder), "CPU", properties)
        self._step = self._layers.create_infer_request()
        self._rows = self._head.create_infer_request()
        self._kv: KVCache | None = None

    @torch.inference_mode()
    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`worker.executor.Model.forward`."""
        logits = self.logits(self.hidden(batch, kv)[batch.sample_index])
        return logits if out is None else out.copy_(logits)

    @torch.inference_mode()
    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        """`worker.executor.Model.hidden`."""
        self._bind(kv)
        lengths = batch.seq_lens.numpy()
        inputs = {
            "embedded": self._embedding(batch.token_ids).numpy(),
            "positions": _int32(batch.positions),
            "past_lens": lengths - np.diff(batch.cu_seqlens.numpy()),
            "subsequence_begins": _int32(batch.cu_seqlens),
            "max_context_len": lengths.max(),
            **_tables(batch.row_tables.numpy(), lengths, kv.block_size),
        }
        return _run(self._step, inputs)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`worker.executor.Model.logits`."""
        return _run(self._rows, {"rows": hidden.contiguous().numpy()})

    def _bind(self, kv: KVCache) -> None:
        """The cache is an input whose memory stays the same."""
        if self._kv is kv:
            return
        for name, tensors in (("key", kv.keys), ("value", kv.values)):
            for index, tensor in enumerate(tensors):
                shared = ov.Tensor(tensor.numpy(), shared_memory=True)
                self._step.set_tensor(f"{name}_cache.{index}", shared)
        self._kv = kv


def _tables(
    tables: npt.NDArray[np.int32], lengths: Int32Column, block_size: int
) -> dict[str, Int32Column]:
    """The blocks of each row one after another, and where each row's begin."""
    counts = -(-lengths // block_size)
    is_used = np.arange(tables.shape[1]) < counts[:, None]
    begins = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=begins[1:])
    return {"block_indices": tables[is_used], "block_indices_begins": begins}


def _int32(column: torch.Tensor) -> Int32Column:
    return column.int().numpy()


def _run(request: ov.InferRequest, inputs: dict[str, npt.NDArray[np.generic]]) -> torch.Tensor:
    request.infer(inputs, share_inputs=True)
    return torch.from_numpy(request.get_output_tensor(0).data)
