"""The figures as tables for people, and what they say of Quire and its peers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.compare_cpu.engines import QUIRE, Engine
from bench.compare_cpu.limits import Limits
from bench.compare_cpu.loads import Case, Sample
from bench.compare_cpu.watch import QUIET_CORES

_HEAD = (
    f"{'system':<16}{'mode':<22}{'tokens/s':>9}{'TTFT p50':>10}{'between':>9}{'per token':>11}"
    f"{'memory':>9}{'of limit':>10}"
)
_UNITS = f"{'':<38}{'out':>9}{'ms':>10}{'p50 ms':>9}{'p50 ms':>11}{'MiB':>9}"


@dataclass(frozen=True, slots=True)
class Row:
    """An engine and its middle figures, by case; a case that it did not finish is missing."""

    engine: Engine
    middles: Mapping[Case, Sample]


@dataclass(frozen=True, slots=True)
class Column:
    """A figure that is compared.

    Attributes:
        better: Quire's over a peer's, or the inverse, so that more than 1 is Quire's.
    """

    name: str
    of: Callable[[Sample], float]
    more_is_better: bool = False

    def best(self, rows: Sequence[Row], case: Case) -> tuple[float, Row] | None:
        """Of those that have the case."""
        found = [(self.of(row.middles[case]), row) for row in rows if case in row.middles]
        pick = max if self.more_is_better else min
        return pick(found, key=lambda each: each[0]) if found else None

    def better(self, ours: float, theirs: float) -> float:
        """By how much ours is; below 1 it is worse."""
        return ours / theirs if self.more_is_better else theirs / ours


COLUMNS = (
    Column("output tokens/s", lambda sample: sample.output_tokens_per_s, more_is_better=True),
    Column("TTFT p50", lambda sample: sample.ttft_ms),
    Column("per token p50", lambda sample: sample.tpot_ms),
    Column("memory", lambda sample: sample.peak_bytes),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Quire's best mode against the best of its peers' modes, in one column of one case."""

    case: Case
    column: str
    ratio: float
    ours: str
    theirs: str

    def __str__(self) -> str:
        """One line."""
        return f"  {self.column:<18}{self.ratio:>6.2f}   {self.ours} against {self.theirs}"


def ratios(rows: Sequence[Row], cases: Sequence[Case], precision: str | None = None) -> list[Ratio]:
    """Of every case and column that both sides have; only of modes of one precision, if said."""
    rows = [row for row in rows if precision in (None, row.engine.precision)]
    ours = [row for row in rows if row.engine.system == QUIRE]
    peers = [row for row in rows if row.engine.system != QUIRE]
    found = []
    for case in cases:
        for column in COLUMNS:
            our_best, their_best = column.best(ours, case), column.best(peers, case)
            if our_best is None or their_best is None:
                continue
            ratio = column.better(our_best[0], their_best[0])
            names = (our_best[1].engine.name, their_best[1].engine.name)
            found.append(Ratio(case, column.name, ratio, *names))
    return found


def of_limit(row: Row, case: Case, limits: Limits) -> float:
    """The least time of a decode step over that between two tokens."""
    return limits.step_ms(case, row.engine.precision) / row.middles[case].itl_ms


def table(case: Case, rows: Sequence[Row], limits: Limits) -> str:
    """All that finished the case; a star where others took more than `QUIET_CORES` cores."""
    lines = [f"== {case.name} ({case.count} requests)", _HEAD, _UNITS]
    for row in rows:
        if case not in row.middles:
            continue
        sample = row.middles[case]
        limit = f"{of_limit(row, case, limits):.0%}" if row.engine.system == QUIRE else ""
        star = f" * others: {sample.others_cores:.2f} cores"
        lines.append(
            f"{row.engine.system:<16}{row.engine.mode:<22}{sample.output_tokens_per_s:>9.1f}"
            f"{sample.ttft_ms:>10.1f}{sample.itl_ms:>9.2f}{sample.tpot_ms:>11.2f}"
            f"{sample.peak_bytes / 2**20:>9.0f}{limit:>10}"
            f"{star if sample.others_cores > QUIET_CORES else ''}"
        )
    return "\n".join(line.rstrip() for line in lines)


def in_words(title: str, found: Sequence[Ratio]) -> str:
    """Ratios for people, by case."""
    lines = [f"== {title}; above 1 Quire is better"]
    for case in dict.fromkeys(ratio.case for ratio in found):
        lines.append(case.name)
        lines += [str(ratio) for ratio in found if ratio.case == case]
    return "\n".join(lines if found else [*lines, "  nothing to compare"])


def as_json(rows: Sequence[Row], cases: Sequence[Case], limits: Limits) -> dict[str, Any]:
    """The tables' content."""
    return {
        "limits": {
            "bytes_per_s": limits.bytes_per_s,
            "flops_per_s": dict(limits.flops_per_s),
            "num_weights": limits.num_weights,
        },
        "loads": {
            case.name: {
                row.engine.name: asdict(row.middles[case])
                | ({"of_limit": of_limit(row, case, limits)} if row.engine.system == QUIRE else {})
                for row in rows
                if case in row.middles
            }
            for case in cases
        },
        "quire_over_best_peer": _nested(ratios(rows, cases)),
        "quire_over_best_peer_in_float32": _nested(ratios(rows, cases, "float32")),
    }


def _nested(found: Sequence[Ratio]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for ratio in found:
        nested.setdefault(ratio.case.name, {})[ratio.column] = {
            "ratio": ratio.ratio,
            "quire": ratio.ours,
            "peer": ratio.theirs,
        }
    return nested
