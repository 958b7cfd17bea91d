"""A seeded request draws the same tokens alone, in a crowd, and after it was preempted."""

from pathlib import Path

from quire import LLM, SamplingParams
from tests.e2e.prompts import load_prompts

CROWD = 16


def seeded(seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.9, top_p=0.95, top_k=200, seed=seed, max_tokens=48, ignore_eos=True
    )


def test_same_tokens_alone_in_a_batch_and_after_preemption(model_dir: Path) -> None:
    prompts = [p.token_ids for p in load_prompts(model_dir)[1 : CROWD + 1]]
    params = [seeded(1000 + i) for i in range(CROWD)]
    with LLM(str(model_dir), threads=1, max_model_len=512) as llm:
        [alone] = llm.generate(prompts[5], params[5], use_tqdm=False)
        together = llm.generate(prompts, params, use_tqdm=False)[5]
        [other_seed] = llm.generate(prompts[5], seeded(99), use_tqdm=False)
    expected = alone.outputs[0].token_ids
    assert len(expected) == 48
    assert together.outputs[0].token_ids == expected
    assert other_seed.outputs[0].token_ids != expected

    # The same request sixteen times over, in a pool for four of them and with nothing shared:
    # whichever are preempted, all must draw what the one drew alone.
    with LLM(
        str(model_dir), threads=1, max_model_len=512, num_blocks=33, enable_prefix_caching=False
    ) as llm:
        crowded = llm.generate([prompts[5]] * CROWD, [params[5]] * CROWD, use_tqdm=False)
        assert llm.state()["preemptions"] > 0
    assert [output.outputs[0].token_ids for output in crowded] == [expected] * CROWD
