"""`LLM` on the real small model: three processes, unix sockets, nothing left behind."""

import contextlib
import os
import random
import select
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.errors import ConfigurationError, InvalidRequest, RequestFailed
from quire.registry import running_stacks

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def _one_runtime_directory(run_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack of this module outlives a test, and so must its directory."""
    monkeypatch.setenv("QUIRE_RUN", run_dir)


@pytest.fixture(scope="module")
def llm(run_dir: str) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUIRE_RUN", run_dir)
        with LLM("smollm2", max_model_len=256, num_blocks=256, threads=1) as llm:
            yield llm


def test_a_text_is_continued(llm: LLM) -> None:
    [output] = llm.generate("The capital of France is", GREEDY)
    [sample] = output.outputs
    assert sample.text.startswith(" Paris")
    assert (len(sample.token_ids), sample.finish_reason) == (8, "length")
    assert output.prompt == "The capital of France is"
    assert output.prompt_token_ids is not None
    assert len(output.prompt_token_ids) == output.num_prompt_tokens == 5


def test_token_ids_and_their_text_give_the_same(llm: LLM) -> None:
    [text] = llm.generate("The capital of France is", GREEDY)
    assert text.prompt_token_ids is not None
    [ids] = llm.generate(text.prompt_token_ids, GREEDY)
    assert ids.outputs == text.outputs
    assert ids.prompt is None


def test_a_prompt_may_be_a_dict(llm: LLM) -> None:
    text = "The capital of France is"
    [plain] = llm.generate(text, GREEDY)
    assert plain.prompt_token_ids is not None
    of_ids: dict[str, Any] = {"prompt_token_ids": plain.prompt_token_ids}
    [one] = llm.generate(of_ids, GREEDY)
    [two, three] = llm.generate([of_ids, {"prompt": text}], GREEDY)
    assert one.outputs == two.outputs == three.outputs == plain.outputs
    assert np.array_equal(llm.embed(of_ids), llm.embed([{"prompt": text}]))


def test_the_tokenizer_is_the_one_that_prompts_go_through(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    text = "The capital of France is"
    [output] = llm.generate(text, GREEDY)
    assert tokenizer.encode(text) == output.prompt_token_ids
    sample = output.outputs[0]
    assert tokenizer.decode(sample.token_ids) == sample.text
    special = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert len(special) == 1
    assert tokenizer.decode(special) == "<|im_end|>"


def test_what_is_no_prompt_is_named(llm: LLM) -> None:
    nonsense: Any = 5
    with pytest.raises(ValueError, match="prompts is 5; it must be a prompt or a list of them"):
        llm.generate(nonsense, GREEDY)
    with pytest.raises(ValueError, match=r"prompts\[1\] is None; it must be a text, token ids or"):
        llm.generate(["fine", None], GREEDY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prompts\[0\].prompt is 5; it must be a text"):
        llm.embed([{"prompt": 5}])


def test_answers_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    lengths = [8, 1, 5, 3, 2, 7]
    params = [SamplingParams(temperature=0, max_tokens=length) for length in lengths]
    outputs = llm.generate(["Once upon a time"] * len(lengths), params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    longest = outputs[0].outputs[0].token_ids
    assert all(longest[: len(o.outputs[0].token_ids)] == o.outputs[0].token_ids for o in outputs)


def test_a_conversation_is_answered(llm: LLM) -> None:
    [output] = llm.chat([{"role": "user", "content": "What is 2+2?"}], GREEDY)
    assert output.outputs[0].text
    assert output.prompt_token_ids is not None
    [again] = llm.generate(output.prompt_token_ids, GREEDY)
    assert again.outputs == output.outputs
    [both, _] = llm.chat([[{"role": "user", "content": "What is 2+2?"}]] * 2, GREEDY)
    assert both.outputs == output.outputs
    with pytest.raises(TypeError, match="tool"):
        llm.chat([{"role": "user", "content": "hi"}], GREEDY, tool=[])
    with pytest.raises(InvalidRequest, match=r"chat template of model .* knows no tools"):
        llm.chat([{"role": "user", "content": "hi"}], GREEDY, tools=[{"function": {"name": "x"}}])


def test_an_output_has_the_structure_that_was_asked_for(llm: LLM) -> None:
    said = StructuredOutputsParams(choice=["red", "green"])
    params = SamplingParams(structured_outputs=said, n=4, max_tokens=20)
    [output] = llm.generate("My favourite colour is", params)
    assert {sample.text for sample in output.outputs} <= {"red", "green"}
    assert all(sample.finish_reason == "stop" for sample in output.outputs)


def test_a_prompt_is_scored_without_an_output(llm: LLM) -> None:
    prompt = "The capital of France is Paris"
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    [output] = llm.generate(prompt, params)
    assert (output.outputs[0].text, output.outputs[0].token_ids) == ("", [])
    assert output.prompt_token_ids is not None
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    for token, row in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert row is not None
        assert row[token].rank >= 1
        assert min(entry.rank for entry in row.values()) == 1
    last = output.prompt_logprobs[-1]
    assert last is not None
    assert last[output.prompt_token_ids[-1]].rank == 1


def test_vectors_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [f"The number {number} and what it means" for number in range(70)]
    vectors = llm.embed(prompts)
    assert vectors.shape == (70, 576)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(llm.embed(prompts[66]), vectors[66:67], atol=1e-5)
    assert len({vector.tobytes() for vector in vectors}) == 70
    with pytest.raises(RequestFailed, match="dimensions is 3; vectors of model"):
        llm.embed(prompts, dimensions=3)
    with pytest.raises(RequestFailed, match="inputs has 0 entries"):
        llm.embed([])


def test_samples_of_one_prompt_differ_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=12)
    first, second = llm.generate(["Once upon a time"] * 2, params)
    assert first.outputs == second.outputs
    assert [sample.index for sample in first.outputs] == [0, 1, 2]
    assert len({sample.text for sample in first.outputs}) == 3


def test_a_seeded_model_gives_each_prompt_its_seed_in_their_order(llm: LLM) -> None:
    def texts(one: LLM, seeds: Sequence[int | None]) -> list[str]:
        params = [SamplingParams(max_tokens=12, seed=seed) for seed in seeds]
        outputs = one.generate(["Once upon a time"] * len(seeds), params)
        return [output.outputs[0].text for output in outputs]

    dice = random.Random(5)
    expected = texts(llm, [dice.getrandbits(64), 7, dice.getrandbits(64)])
    assert len(set(expected)) == 3
    with LLM("smollm2", max_model_len=256, num_blocks=256, threads=1, seed=5) as seeded:
        assert texts(seeded, [None, 7, None]) == expected


def test_logprobs_name_the_chosen_token_and_the_likeliest(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2)
    [output] = llm.generate("The capital of France is", params)
    [sample] = output.outputs
    assert sample.logprobs is not None
    assert len(sample.logprobs) == 4
    for token_id, alternatives in zip(sample.token_ids, sample.logprobs, strict=True):
        assert alternatives[token_id].rank == 1
        assert len(alternatives) == 2
        assert all(entry.logprob < 0 for entry in alternatives.values())


def test_a_prompt_that_never_fits_is_refused_with_both_numbers(llm: LLM) -> None:
    with pytest.raises(RequestFailed, match=r"the prompt has 300 tokens.* at most 256"):
        llm.generate([1] * 300, GREEDY)
    assert llm.generate("Still", GREEDY)


def test_one_set_of_parameters_per_prompt(llm: LLM) -> None:
    with pytest.raises(ValueError, match="sampling_params has 1 entries; it must have one, or one"):
        llm.generate(["a", "b"], [GREEDY])


@pytest.mark.chaos
def test_a_killed_worker_costs_a_pause_and_no_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    before = llm.generate("Once upon a time", params)
    [stack] = running_stacks()
    [worker] = [process.pid for process in stack.processes if process.role == "worker"]
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    after = llm.generate("Once upon a time", params)
    assert after[0].outputs == before[0].outputs


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(TypeError, match="unknown option 'tensor_size'; options are: replicas"):
        LLM("smollm2", tensor_size=2)


def test_no_replicas_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="replicas is 0; it must be at least 1"):
        LLM("smollm2", replicas=0)


def test_closing_ends_every_process() -> None:
    llm = LLM("smollm2", max_model_len=64, num_blocks=16, threads=1)
    processes = [
        p for stack in running_stacks() for p in stack.processes if stack.pid == os.getpid()
    ]
    watches = [os.pidfd_open(process.pid) for process in processes if process.pid is not None]
    assert len(watches) >= 3
    llm.close()
    llm.close()
    mine = watches[-3:]
    assert all(select.select([watch], [], [], 0)[0] for watch in mine)
    for watch in watches:
        with contextlib.suppress(OSError):
            os.close(watch)
