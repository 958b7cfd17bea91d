"""Encoders against transformers' own, whatever shares their batch; and what a directory may say."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests.worker.builders import admission, plan
from worker import ledger
from worker.encoder_loader import LoadedEncoder, holds_encoder, open_encoder
from worker.encoder_runner import EncoderRunner, start_encoder
from worker.ledger import MemoryShortError, check_weights
from worker.loader import LoadError
from worker.plans import FinishReason, PlanError, Pooling, StepResult
from worker.sizes import Sizes

CPU = torch.device("cpu")
SIZES = Sizes(block_size=16, max_num_seqs=8, max_num_batched_tokens=256)
VOCAB_SIZE = 90
DIMENSIONS: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,
}
FAMILIES = [
    (BertModel, BertConfig(**DIMENSIONS)),
    (BertModel, BertConfig(**DIMENSIONS, hidden_act="gelu_new", layer_norm_eps=1e-5)),
    (RobertaModel, RobertaConfig(**DIMENSIONS, type_vocab_size=1)),
    (XLMRobertaModel, XLMRobertaConfig(**DIMENSIONS, pad_token_id=1)),
]
PICKS: dict[Pooling, Callable[[torch.Tensor], torch.Tensor]] = {
    Pooling.MEAN: lambda states: states.mean(0),
    Pooling.CLS: lambda states: states[0],
    Pooling.LAST: lambda states: states[-1],
}
PROMPTS = [[(11 * i + 7 * j) % 80 + 5 for j in range(n)] for i, n in enumerate((1, 17, 5, 70, 18))]


def write_model(directory: Path, family: Any = BertModel, config: Any = FAMILIES[0][1]) -> Path:
    torch.manual_seed(5)
    family(config).save_pretrained(directory)
    return directory


def write_modules(directory: Path, *kinds: str, **pooling: Any) -> None:
    modules = [
        {"idx": i, "path": "" if i == 0 else f"{i}_{kind}", "type": f"some.package.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def load(directory: Path, **options: Any) -> LoadedEncoder:
    return open_encoder(directory, dtype="auto", device=CPU, **options).load()


def embed(runner: EncoderRunner, prompts: Sequence[Sequence[int]]) -> StepResult:
    """All prompts in one step."""
    runner.reset()
    slots = range(len(prompts))
    admitted = [admission(s, p, (), max_total=len(p)) for s, p in zip(slots, prompts, strict=True)]
    chunks = [(slot, 0, len(prompt)) for slot, prompt in zip(slots, prompts, strict=True)]
    return runner.step(plan(1, admit=admitted, chunks=chunks))


def values(result: StepResult) -> torch.Tensor:
    assert result.vectors is not None
    assert (result.vectors.finish == FinishReason.STOP).all()
    return torch.from_numpy(result.vectors.value)


def hidden_states(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = model(torch.tensor([prompt])).last_hidden_state[0]
    return states


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_vectors_are_those_of_transformers_alone_and_together(
    tmp_path: Path, family: Any, config: Any
) -> None:
    directory = write_model(tmp_path, family, config)
    oracle: Any = AutoModel.from_pretrained(directory).eval()
    for pooling, pick in PICKS.items():
        runner = start_encoder(load(directory, pooling=pooling), SIZES)
        want = torch.stack([pick(hidden_states(oracle, prompt)) for prompt in PROMPTS])
        want = torch.nn.functional.normalize(want, dim=1)
        together = values(embed(runner, PROMPTS))
        alone = torch.cat([values(embed(runner, [prompt])) for prompt in PROMPTS])
        assert (together - want).abs().max() < 1e-5
        assert (alone - want).abs().max() < 1e-5


def test_a_directory_of_sentence_transformers_decides_pooling_norm_and_length(
    tmp_path: Path,
) -> None:
    directory = write_model(tmp_path)
    write_modules(directory, "Transformer", "Pooling", pooling_mode_cls_token=True)
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    loaded = load(directory)
    assert loaded.pooling.pooling is Pooling.CLS
    assert loaded.max_model_len == 64
    states = hidden_states(AutoModel.from_pretrained(directory).eval(), PROMPTS[1])
    vector = values(embed(start_encoder(loaded, SIZES), [PROMPTS[1]]))[0]
    assert (vector - states[0]).abs().max() < 1e-5  # not of length 1: there is no Normalize
    assert load(directory, max_model_len=80).max_model_len == 80
    assert load(directory, pooling=Pooling.MEAN).pooling.pooling is Pooling.MEAN


@pytest.mark.parametrize(
    ("kinds", "pooling", "says"),
    [
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (("Transformer", "Pooling"), {}, "pooling is nothing"),
        (("Transformer", "Pooling", "Dense"), {"pooling_mode": "mean"}, "modules.json has Dense"),
        (("Transformer",), {}, "modules.json has no Pooling"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode": "mean", "include_prompt": False},
            "include_prompt is false",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, kinds: Sequence[str], pooling: dict[str, Any], says: str
) -> None:
    directory = write_model(tmp_path)
    write_modules(directory, *kinds, **pooling)
    with pytest.raises(LoadError, match=says):
        load(directory)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("hidden_act", "swish", "hidden_act is 'swish'"),
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        ("num_attention_heads", 5, "hidden_size is 32; it must be a multiple"),
        ("is_decoder", True, "is_decoder is set"),
    ],
)
def test_a_configuration_that_is_not_computed_is_refused_by_name(
    tmp_path: Path, field: str, value: Any, says: str
) -> None:
    directory = write_model(tmp_path)
    assert holds_encoder(directory)
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw | {field: value}))
    with pytest.raises(LoadError, match=says):
        load(directory)


def test_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    directory = write_model(tmp_path, RobertaModel, FAMILIES[2][1])
    assert load(directory).max_model_len == 78  # two positions are the padding's
    with pytest.raises(LoadError, match="max_model_len is 79; this model has 1 to 78"):
        load(directory, max_model_len=79)


def test_a_token_or_a_weight_that_is_none_ends_one_sequence_alone(tmp_path: Path) -> None:
    runner = start_encoder(load(write_model(tmp_path)), SIZES)
    result = embed(runner, [PROMPTS[1], [3, VOCAB_SIZE, 4], PROMPTS[2]])
    assert result.vectors is not None
    assert result.vectors.finish.tolist() == [1, FinishReason.ERROR, 1]
    assert runner.num_live == 0


def test_plans_that_contradict_an_encoder_are_errors(tmp_path: Path) -> None:
    runner = start_encoder(load(write_model(tmp_path)), SIZES)
    whole = admission(0, PROMPTS[1], (), max_total=17)
    for wrong in (
        plan(admit=[whole], chunks=[(0, 0, 16)]),
        plan(admit=[whole], chunks=[(1, 0, 17)]),
        plan(admit=[admission(0, PROMPTS[1], (), max_total=18)]),
        plan(admit=[admission(0, PROMPTS[1], (4,), max_total=17)]),
        plan(admit=[whole, whole]),
        plan(admit=[whole], decode=[0]),
        plan(retire=[0]),
        plan(admit=[admission(0, [1] * 81, (), max_total=81)]),
    ):
        runner.reset()
        with pytest.raises(PlanError):
            runner.step(wrong)


def test_slots_are_used_again_and_results_carry_their_generation(tmp_path: Path) -> None:
    runner = start_encoder(load(write_model(tmp_path)), SIZES)
    first = values(
        runner.step(plan(1, admit=[admission(0, [7, 8], (), max_total=2)], chunks=[(0, 0, 2)]))
    )
    again = admission(0, [9, 8, 7], (), max_total=3, generation=4)
    result = runner.step(plan(2, retire=[0], admit=[again], chunks=[(0, 0, 3)]))
    assert result.vectors is not None
    assert result.vectors.generation.tolist() == [4]
    assert not np.allclose(result.vectors.value, first.numpy())
    assert (result.slot.size, result.token_id.size) == (0, 0)


def test_weights_that_cannot_fit_are_refused_before_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they will need is known from the headers, to the byte."""
    directory = write_model(tmp_path)
    opened = open_encoder(directory, dtype="auto", device=CPU)
    assert opened.weight_bytes == opened.load().weight_bytes
    check_weights(opened)
    monkeypatch.setattr(ledger, "free_bytes", lambda device: 10 << 10)
    with pytest.raises(MemoryShortError, match=r"^the weights need .* 10\.00 KiB of memory are fr"):
        check_weights(opened)
