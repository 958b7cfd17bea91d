"""A steady mix of everything: sequences of all kinds come and go while others decode."""

import random
import threading
from collections.abc import Iterator

from tests.worker.builders import VOCAB_SIZE, admission, plan
from tests.worker.runners import graph_bucket
from worker.executor import Runner
from worker.plans import BatchPlan, Sampling, StepResult

REFINED = (
    Sampling(num_logprobs=3, num_prompt_logprobs=2),
    Sampling(temperature=1.0, num_logprobs=0),
    Sampling(presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.3),
    Sampling(bias_token_ids=(7, 300, 999), bias=(3.0, -100.0, 5.0)),
    Sampling(stop_token_ids=(5, 11, 17, 23, 31), min_tokens=4),
    Sampling(temperature=0.8, top_k=7, top_p=0.8, min_p=0.02, stop_token_ids=tuple(range(60, 90))),
)


def churn(runner: Runner) -> list[StepResult]:
    """The results of plans that are all launched before the first is looked at."""
    results: list[StepResult] = []
    arrived = threading.Semaphore(0)

    def deliver(result: StepResult) -> None:
        results.append(result)
        arrived.release()

    plans = list(churning_plans(runner))
    for each in plans:
        runner.launch(each, 0, deliver)
    for _ in plans:
        assert arrived.acquire(timeout=60)
    return results


def churning_plans(runner: Runner) -> Iterator[BatchPlan]:
    """Sequences of six kinds: one enters each other step; they stay on after they have ended."""
    dice = random.Random(4)
    entered: dict[int, int] = {}
    num_left: dict[int, int] = {}
    for step in range(1, 41):
        leaving = [slot for slot, since in entered.items() if step - since == 13]
        for slot in leaving:
            del entered[slot]
        decode = [slot for slot in entered if num_left[slot]]
        for slot in decode:
            num_left[slot] -= 1
        admitted, chunks, appended = [], [], []
        if step % 2 and step < 25:
            slot, num_prompt = (step // 2) % 8, dice.randrange(1, 30)
            prompt = dice.choices(range(VOCAB_SIZE), k=num_prompt)
            if step == 9:
                prompt[0] = VOCAB_SIZE + 7  # unknown to the model: this one ends with an error
            num_left[slot] = dice.choice((3, 9, 40))
            admitted = [
                admission(
                    slot,
                    prompt,
                    (),
                    generation=step,
                    max_total=num_prompt + num_left[slot] + 1,
                    seed=dice.getrandbits(64),
                    sampling=REFINED[(step // 2) % len(REFINED)],
                )
            ]
            appended = [(slot, index, 1 + slot * 12 + index) for index in range(12)]
            chunks = [(slot, 0, num_prompt)]
            entered[slot] = step
        yield plan(
            step,
            retire=leaving,
            admit=admitted,
            append=appended,
            decode=decode,
            chunks=chunks,
            graph_bucket=0 if chunks else graph_bucket(runner, len(decode)),
        )
