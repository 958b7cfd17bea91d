"""Greedy output equals transformers' own where OpenVINO computes, however the work is cut up."""

from dataclasses import replace

import pytest

from protos.blocks import OPENVINO_BLOCK_SIZE
from tests.e2e.exactness import EVERY, REAL, Setting, check, parameters
from tests.e2e.reference import Prompt, Reference
from worker.backends import why_openvino_is_missing

pytestmark = pytest.mark.skipif(
    why_openvino_is_missing() is not None, reason="OpenVINO does not compute here"
)

COMPILED = [
    replace(setting, cpu_backend="openvino")
    for setting in EVERY
    if setting.block_size == OPENVINO_BLOCK_SIZE
]


ALL_AT_ONCE = Setting(True, 64, OPENVINO_BLOCK_SIZE, 32, 2, True, "openvino")
"""Chunks that share steps, prefixes, replicas, preemption."""


@pytest.mark.parametrize("setting", parameters(COMPILED, ALL_AT_ONCE.__eq__))
def test_the_small_model(
    small_reference: Reference, small_prompts: list[Prompt], setting: Setting
) -> None:
    check(small_reference, small_prompts, setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", REAL, ids=str)
def test_the_real_model(reference: Reference, prompts: list[Prompt], setting: Setting) -> None:
    compiled = replace(setting, block_size=OPENVINO_BLOCK_SIZE, cpu_backend="openvino")
    check(reference, prompts, compiled)
