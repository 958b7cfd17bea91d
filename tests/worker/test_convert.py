"""A GGUF file becomes a Hugging Face directory: same weights, same tokens, whole or not at all."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.float_model import float_model
from worker.checkpoint import Checkpoint
from worker.convert import FILES, convert
from worker.gguf_model import ConvertError, GGUFModel, unpermute
from worker.loader import load_model

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["l l", "h e", "he ll", "hell o", "Ġ w", "Ġ 1", "1 2"]
TOKENS = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES), "<user>"]


def silent(written: int, total: int) -> None:
    pass


def permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


@dataclass
class TinyGGUF:
    """Writes a GGUF of two layers; fields are what tests change."""

    metadata: dict[str, Any] = field(default_factory=dict)
    extra_tensors: dict[str, np.ndarray] = field(default_factory=dict)
    pre: str | None = "smollm"
    kind: str = "gpt2"
    architecture: str = "llama"
    output_head: bool = False

    def tensors(self) -> dict[str, np.ndarray]:
        """By Hugging Face name, as a model would hold them."""
        random = np.random.default_rng(3)
        kv_rows = HIDDEN // HEADS * KV_HEADS
        shapes: dict[str, Sequence[int]] = {"model.embed_tokens": (len(TOKENS), HIDDEN)}
        if self.output_head:
            shapes["lm_head"] = (len(TOKENS), HIDDEN)
        shapes["model.norm"] = (HIDDEN,)
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input_layernorm"] = (HIDDEN,)
            shapes[prefix + "post_attention_layernorm"] = (HIDDEN,)
            shapes[prefix + "self_attn.q_proj"] = (HIDDEN, HIDDEN)
            shapes[prefix + "self_attn.k_proj"] = (kv_rows, HIDDEN)
            shapes[prefix + "self_attn.v_proj"] = (kv_rows, HIDDEN)
            shapes[prefix + "self_attn.o_proj"] = (HIDDEN, HIDDEN)
            shapes[prefix + "mlp.gate_proj"] = (MLP, HIDDEN)
            shapes[prefix + "mlp.up_proj"] = (MLP, HIDDEN)
            shapes[prefix + "mlp.down_proj"] = (HIDDEN, MLP)
        return {
            f"{name}.weight": random.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()
        }

    @staticmethod
    def kind_of(name: str) -> Kind | None:
        """What a tensor is quantized to: also one whose rows are permuted."""
        kinds = {"up_proj": Kind.Q8_0, "k_proj": Kind.Q4_1, "down_proj": Kind.Q5_0}
        return next((kind for part, kind in kinds.items() if part in name), None)

    def write(self, path: Path) -> Path:
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
        writer = gguf.GGUFWriter(path, self.architecture)
        self._write_metadata(writer)
        for name, values in self.tensors().items():
            gguf_name = names.get_name(name, try_suffixes=(".weight",))
            if "q_proj" in name or "k_proj" in name:
                values = permute(values, HEADS if "q_proj" in name else KV_HEADS)
            kind = self.kind_of(name)
            if kind is None:
                writer.add_tensor(gguf_name, values)
            else:
                writer.add_tensor(gguf_name, quantize(values, kind), raw_dtype=kind)
        for name, values in self.extra_tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _write_metadata(self, writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(LAYERS)
        writer.add_context_length(64)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(MLP)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(100000.0)
        writer.add_tokenizer_model(self.kind)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(TOKENS)
        types = [gguf.TokenType.NORMAL] * len(TOKENS)
        types[: len(SPECIAL)] = [gguf.TokenType.CONTROL] * len(SPECIAL)
        types[-1] = gguf.TokenType.USER_DEFINED
        writer.add_token_types(types)
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_chat_template("{{ messages[0]['content'] }}")
        for key, value in self.metadata.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
            add.get(type(value), writer.add_float32)(key, value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return TinyGGUF().write(tmp_path / "tiny.gguf")


def converted(tiny: TinyGGUF, directory: Path) -> Path:
    destination = directory / "converted"
    convert(tiny.write(directory / "tiny.gguf"), destination, silent)
    return destination


def tokenizer_of(tiny: TinyGGUF, directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(converted(tiny, directory) / "tokenizer.json"))


def refusal(tiny: TinyGGUF, directory: Path) -> str:
    with pytest.raises(ConvertError) as caught:
        converted(tiny, directory)
    assert sorted(path.name for path in directory.iterdir()) == ["tiny.gguf"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("output_head", [False, True])
def test_weights_survive_the_round_trip(tmp_path: Path, output_head: bool) -> None:
    tiny = TinyGGUF(output_head=output_head)
    got = Checkpoint.open(converted(tiny, tmp_path))
    expected = tiny.tensors()
    assert got.entries.keys() == expected.keys()
    for name, values in expected.items():
        kind = tiny.kind_of(name)
        assert (got.read_codes(name) is None) == (kind is None)
        if kind is not None:
            values = dequantize(quantize(values, kind), kind)
        read = got.read(name, (), torch.float32, torch.device("cpu"))
        np.testing.assert_array_equal(read, values, err_msg=name)
    config = json.loads((tmp_path / "converted/config.json").read_text())
    assert config["tie_word_embeddings"] is not output_head
    assert config["quantization_config"] == {"quant_method": "quire"}


def test_unpermute_undoes_permute() -> None:
    rows = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
    assert not np.array_equal(permute(rows, 2), rows)
    np.testing.assert_array_equal(unpermute(permute(rows, 2), 2), rows)


def test_the_directory_loads_here_and_its_floats_in_transformers(tmp_path: Path) -> None:
    directory = converted(TinyGGUF(), tmp_path)
    assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)
    loaded = load_model(directory, dtype="auto", device=torch.device("cpu"))
    assert (loaded.config.layers[0].rope.theta, loaded.config.rms_norm_eps) == (100000.0, 1e-5)
    theirs = float_model(directory)
    assert theirs.config.vocab_size == len(TOKENS)
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.config.rope_parameters["rope_theta"] == 100000.0
    text = PreTrainedTokenizerFast.from_pretrained(directory)
    assert (text.bos_token, text.eos_token, text.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    messages = [{"role": "user", "content": "hello"}]
    assert text.apply_chat_template(messages, tokenize=False) == "hello"


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    directory = converted(TinyGGUF(metadata=metadata), tmp_path)
    loaded = load_model(directory, dtype="auto", device=torch.device("cpu"))
    scaling = loaded.config.layers[0].rope.scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor) == ("linear", 4.0)


def test_the_cut_decides_how_digits_merge(tmp_path: Path) -> None:
    by_cut = {}
    for pre in ("gpt-2", "smollm", "llama-bpe"):
        (tmp_path / pre).mkdir()
        tokenizer = tokenizer_of(TinyGGUF(pre=pre), tmp_path / pre)
        by_cut[pre] = tokenizer.encode("hello 12", add_special_tokens=False).tokens
    assert by_cut["gpt-2"] == ["hello", "Ġ1", "2"]
    assert by_cut["smollm"] == ["hello", "Ġ", "1", "2"]
    assert by_cut["llama-bpe"] == ["hello", "Ġ", "12"]


def test_special_and_user_defined_tokens_are_whole(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(TinyGGUF(), tmp_path)
    encoded = tokenizer.encode("<|im_start|>hello<user><|im_end|>")
    assert encoded.tokens == ["<|im_start|>", "hello", "<user>", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == "hello<user>"
    assert encoded.ids == [1, TOKENS.index("hello"), len(TOKENS) - 1, 2]


@pytest.mark.parametrize(
    ("pre", "metadata", "adds"),
    [
        ("smollm", {}, False),
        ("smollm", {"tokenizer.ggml.add_bos_token": True}, True),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, False),
    ],
)
def test_bos_leads_where_the_model_wants_it(
    tmp_path: Path, pre: str, metadata: dict[str, Any], adds: bool
) -> None:
    tokenizer = tokenizer_of(TinyGGUF(pre=pre, metadata=metadata), tmp_path)
    assert tokenizer.encode("hello").tokens == ["<|im_start|>"] * adds + ["hello"]
    config = json.loads((tmp_path / "converted/tokenizer_config.json").read_text())
    assert config["add_bos_token"] is adds


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (TinyGGUF(architecture="falcon"), "architecture 'falcon'; only 'llama'"),
        (TinyGGUF(kind="llama"), "tokenizer kind 'llama'; only byte-level BPE"),
        (TinyGGUF(pre="tekken"), "tokenizer.ggml.pre is 'tekken'; known: gpt-2, smollm"),
        (TinyGGUF(pre=None), "tokenizer.ggml.pre is '(none)'"),
        (TinyGGUF(metadata={"llama.expert_count": 8}), "mixtures of experts"),
        (TinyGGUF(metadata={"llama.rope.dimension_count": 8}), "rope.dimension_count is 8"),
        (TinyGGUF(metadata={"llama.rope.scaling.type": "yarn"}), "rope scaling 'yarn'"),
        (
            TinyGGUF(extra_tensors={"rope_freqs.weight": np.ones(8, np.float32)}),
            "rope_freqs.weight",
        ),
        (
            TinyGGUF(extra_tensors={"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}),
            "tensor blk.0.attn_q_norm.weight has no place",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_converted_is_named(tmp_path: Path, tiny: TinyGGUF, message: str) -> None:
    assert message in refusal(tiny, tmp_path)


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(source: Path, kept: float) -> None:
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ConvertError, match=r"tiny.gguf: truncated or damaged \(\d+ bytes\)"):
        convert(source, source.parent / "out", silent)
    assert [path.name for path in source.parent.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 not a model"])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ConvertError, match="not a GGUF file"):
        convert(tmp_path / "x.gguf", tmp_path / "out", silent)


def test_progress_ends_at_all_bytes(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    convert(source, tmp_path / "out", lambda written, total: told.append((written, total)))
    written, total = zip(*told, strict=True)
    assert list(written) == sorted(written)
    assert written[-1] == total[-1] > 0


def test_a_complete_directory_is_left_alone(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", silent)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    source.unlink()
    convert(source, tmp_path / "out", silent)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_directory_of_something_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/diary.txt").write_text("dear")
    with pytest.raises(ConvertError, match="exists and is not a converted model"):
        convert(source, tmp_path / "out", silent)
    assert (tmp_path / "out/diary.txt").read_text() == "dear"


def test_a_failure_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    def fail(written: int, total: int) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        convert(source, tmp_path / "out", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_what_killed_converters_left_is_removed(source: Path, tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    abandoned, in_use = tmp_path / f"out.partial-{dead}", tmp_path / f"out.partial-{os.getppid()}"
    abandoned.mkdir()
    in_use.mkdir()
    convert(source, tmp_path / "out", silent)
    assert not abandoned.exists()
    assert in_use.exists()


def test_a_converter_that_comes_second_accepts_the_first(source: Path, tmp_path: Path) -> None:
    def race(written: int, total: int) -> None:
        if written == total:
            convert_in_between()

    def convert_in_between() -> None:
        other = tmp_path / "other"
        convert(source, other, silent)
        other.rename(tmp_path / "out")

    convert(source, tmp_path / "out", race)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.gguf"]


def test_the_command_converts_and_refuses_in_one_line(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worker.convert"]
    done = subprocess.run(
        [*command, source, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "converting: 100 %" in done.stderr
    missing = tmp_path / "missing.gguf"
    failed = subprocess.run(
        [*command, missing, tmp_path / "no"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr == f"error: {missing}: no such file\n"


def test_metadata_that_is_absent_is_named(source: Path) -> None:
    model = GGUFModel(source)
    with pytest.raises(ConvertError, match=r"no llama\.colour in its metadata"):
        model.require("llama.colour")
