"""What a user would try first, given the same model and the same requests.

Each function returns the seconds of every load, once what is compiled at first use is compiled.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu.scale import Load
from bench.gpu.suite import Suite
from bench.mixed_requests import uniform_requests
from worker.models.registry import checkpoint_tensors, parse_config
from worker.random_weights import RandomWeights

Prompts = list[list[int]]


def generate(directory: Path, suite: Suite) -> dict[Load, float]:
    """transformers' `generate`: all prompts of a load as one batch; they are equally long."""
    model = _transformers_model(directory, suite)

    def answer(prompts: Prompts, output_len: int) -> Sequence[Sequence[int]]:
        ids = torch.tensor(prompts, device=suite.device.torch_device)
        with torch.inference_mode():
            answers = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=output_len,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        answered: Sequence[Sequence[int]] = answers[:, ids.shape[1] :].tolist()
        return answered

    return _timed(answer, suite.scale.peers)


def generate_batch(directory: Path, suite: Suite) -> dict[Load, float]:
    """transformers' continuous batching, which keeps a paged cache of its own."""
    from transformers import GenerationConfig

    model = _transformers_model(directory, suite)

    def answer(prompts: Prompts, output_len: int) -> Sequence[Sequence[int]]:
        config = GenerationConfig(
            max_new_tokens=output_len, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        answers = model.generate_batch(
            prompts, generation_config=config, persistent_manager=True, progress_bar=False
        )
        return [found.generated_tokens for found in answers.values()]

    # It keeps a cache and graphs that are made for the first requests it gets, and for no larger.
    forget = model.destroy_cached_continuous_batching_manager
    try:
        return _timed(answer, suite.scale.continuous, rehearse=None, before_load=forget)
    finally:
        forget()


def has_vllm() -> bool:
    """Whether it could be imported."""
    return importlib.util.find_spec("vllm") is not None


def vllm(directory: Path, suite: Suite) -> dict[Load, float]:
    """vLLM's `LLM`, as it comes."""
    from vllm import LLM
    from vllm import SamplingParams as Params

    loads = (suite.scale.offline, *suite.scale.peers)
    llm = LLM(
        str(directory),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=max(load.input_len + load.output_len for load in loads),
        max_num_seqs=suite.scale.many_rows,
    )

    def answer(prompts: Prompts, output_len: int) -> Sequence[Sequence[int]]:
        params = Params(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = llm.generate(asked, params, use_tqdm=False)
        return [found.outputs[0].token_ids for found in answers]

    return _timed(answer, loads)


def _timed(
    answer: Callable[[Prompts, int], Sequence[Sequence[int]]],
    loads: Sequence[Load],
    *,
    rehearse: int | None = 4,
    before_load: Callable[[], None] = lambda: None,
) -> dict[Load, float]:
    """Answers each load, after one of the same batch that does not count; other prompts each time.

    Args:
        answer: takes prompts and how many tokens to answer to each.
        loads: these.
        rehearse: tokens of the answers that do not count; None: as many as of those that do.
        before_load: called before anything of a load.
    """
    took = {}
    for seed, load in enumerate(loads, start=1):
        before_load()
        for turn, output_len in enumerate((rehearse or load.output_len, load.output_len)):
            requests = uniform_requests(
                load.count,
                input_len=load.input_len,
                output_len=output_len,
                seed=seed + 100 * turn,
            )
            prompts = [list(request.token_ids) for request in requests]
            began = time.perf_counter()
            answers = answer(prompts, output_len)
            took[load] = time.perf_counter() - began
            if [len(tokens) for tokens in answers] != [output_len] * load.count:
                raise RuntimeError("not every token came")
    return took


def _transformers_model(directory: Path, suite: Suite) -> Any:
    """transformers' model with the weights that `--load-format dummy` makes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    device, dtype = suite.device.torch_device, suite.device.dtype
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    weights = RandomWeights(checkpoint_tensors(parse_config(suite.scale.large.config)))
    parameters = dict(model.named_parameters())
    if set(parameters) != set(weights.shapes):
        raise RuntimeError("transformers has other weights than this shape")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights.read(name, (), dtype, device))
    model.generation_config.eos_token_id = None
    return model
