"""What drafts are worth to one request at a time: the same answers with and without them.

    python -m bench.speculation --threads 1

Three answers repeat much of their prompt: a summary in the text's own words, code with annotations,
a list said again. Two repeat nothing on purpose: a story drawn at temperature 1, whose turns of
phrase may come again, and what comes of a prompt of random tokens. Two stacks run at once, one with
`--speculative-ngram`, one with `off`; they take turns, so that other load on the machine meets
both, and what counts is the median of the rounds' own ratios.
"""

import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.recording import Target, report
from quire import LLM, SamplingParams

NOTE = """The workshop on Tuesday will be held in the large meeting room on the second floor.
Please bring your own laptop, a charger and the printed programme. Coffee and sandwiches will be
served at noon in the garden behind the main building. The afternoon session begins at two o'clock
with a talk by Professor Margaret Hamilton about the software of the Apollo guidance computer, and
it ends at five o'clock with a discussion that is open to all members of the department. Those who
wish to stay for dinner should write to the secretary before Monday morning.""".replace("\n", " ")

CODE = '''def average_temperature(readings, unit="celsius"):
    """Returns the mean of the readings that are not missing."""
    valid_readings = [reading for reading in readings if reading is not None]
    if not valid_readings:
        raise ValueError("there are no valid readings")
    total = sum(valid_readings)
    mean = total / len(valid_readings)
    if unit == "fahrenheit":
        mean = mean * 9 / 5 + 32
    return round(mean, 2)


def warmest_reading(readings):
    """Returns the largest of the readings that are not missing."""
    valid_readings = [reading for reading in readings if reading is not None]
    if not valid_readings:
        raise ValueError("there are no valid readings")
    return max(valid_readings)
'''

LIST = """1. Alexandria, Egypt: 5,200,000 people
2. Barcelona, Spain: 1,620,000 people
3. Copenhagen, Denmark: 660,000 people
4. Dar es Salaam, Tanzania: 6,700,000 people
5. Edinburgh, Scotland: 530,000 people
6. Florence, Italy: 360,000 people
7. Guadalajara, Mexico: 1,385,000 people
8. Helsinki, Finland: 675,000 people"""

REPEATING = {
    "summary": f"Repeat the most important sentences of this text, word for word:\n\n{NOTE}",
    "code": f"Write this code again, with type annotations:\n\n```python\n{CODE}```",
    "list": f"Say this list again:\n\n{LIST}",
}
LEAST_SPEED_UP, LEAST_ON_RANDOM = 1.8, 0.97


@dataclass(frozen=True)
class Case:
    """A request."""

    prompt: Any
    params: SamplingParams

    def run(self, llm: LLM) -> tuple[float, list[int]]:
        """Output tokens/s, and the tokens."""
        started = time.perf_counter()
        if isinstance(self.prompt, str):
            [output] = llm.chat(
                [{"role": "user", "content": self.prompt}], self.params, use_tqdm=False
            )
        else:
            [output] = llm.generate({"prompt_token_ids": self.prompt}, self.params, use_tqdm=False)
        tokens = list(output.outputs[0].token_ids)
        return len(tokens) / (time.perf_counter() - started), tokens


def cases(output_len: int) -> dict[str, Case]:
    """By name; the last two are drawn."""
    greedy = SamplingParams(temperature=0, max_tokens=output_len)
    found = {name: Case(prompt, greedy) for name, prompt in REPEATING.items()}
    dice = random.Random(1)
    drawn = SamplingParams(temperature=1.0, seed=1, max_tokens=output_len, ignore_eos=True)
    found["story"] = Case("Tell me a long story about a lighthouse and its keeper.", drawn)
    found["random"] = Case([dice.randrange(1000, 40_000) for _ in range(128)], drawn)
    return found


def run(model: str, threads: int, rounds: int, output_len: int, drafts: str) -> dict[str, Any]:
    """Figures by case."""
    options: dict[str, Any] = {"threads": threads, "max_model_len": 2048}
    found: dict[str, Any] = {}
    with (
        LLM(model, speculative_ngram="off", **options) as plain,
        LLM(model, speculative_ngram=drafts, **options) as drafting,
    ):
        for name, case in cases(output_len).items():
            found[name] = _compare(case, plain, drafting, rounds)
    return found


def _compare(case: Case, plain: LLM, drafting: LLM, rounds: int) -> dict[str, Any]:
    case.run(plain)
    case.run(drafting)  # from now on the prompt is cached on both sides
    before = drafting.state()
    rates: dict[LLM, list[float]] = {plain: [], drafting: []}
    answers = {}
    for number in range(rounds):
        for llm in (plain, drafting) if number % 2 else (drafting, plain):
            rate, answers[llm] = case.run(llm)
            rates[llm].append(rate)
    after = drafting.state()
    drafted, accepted = (after[key] - before[key] for key in ("draft_tokens", "accepted_tokens"))
    ratios = [fast / slow for fast, slow in zip(rates[drafting], rates[plain], strict=True)]
    return {
        "tokens": len(answers[plain]),
        "same tokens": answers[plain] == answers[drafting],
        "tokens/s without": statistics.median(rates[plain]),
        "tokens/s with": statistics.median(rates[drafting]),
        "ratio": statistics.median(ratios),
        "drafted": drafted // rounds,
        "accepted": accepted // rounds,
    }


def main(
    model: Annotated[str, typer.Option(help="What `quire serve` takes.")] = "smollm2",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads of each stack.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Of each request.")] = 5,
    output_len: Annotated[int, typer.Option(min=1, help="Output tokens at most.")] = 256,
    drafts: Annotated[str, typer.Option(help="--speculative-ngram of the one stack.")] = "auto",
    save: Annotated[Path | None, typer.Option(help="Write figures and machine as JSON.")] = None,
) -> None:
    """Measures and prints; about two minutes."""
    figures = run(model, threads, rounds, output_len, drafts)
    targets = [
        Target(
            f"speed-up: {name}",
            figures[name]["ratio"],
            LEAST_SPEED_UP if name in REPEATING else LEAST_ON_RANDOM,
            at_least=True,
        )
        for name in figures
    ]
    report({"threads": threads, "rounds": rounds, "requests": figures}, targets, save)


if __name__ == "__main__":
    typer.run(main)
