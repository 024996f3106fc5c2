"""Ablations: variants of one run, made from several seeds, and how far they lie apart.

S: seeds, N: items that a figure is the mean of, such as clips.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from musiclm.evaluation import bootstrap, report
from musiclm.evaluation.bootstrap import Estimate

_LEVEL = 0.95
_DIGITS = 4

Curve = Mapping[int, float]  # a figure by step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A run that differs from the study's own by what it overrides.

    Attributes:
      name: its own in the study; one line.
      overrides: gin bindings, such as ("optim.OptimizerConfig.weight_decay = 0.1",).
      expected: the result that is expected, in words.
    """

    name: str
    overrides: Sequence[str] = ()
    expected: str

    def __post_init__(self):
        if not self.name.strip() or "\n" in self.name or "|" in self.name:
            raise ValueError(f"Variant.name is {self.name!r}: give one line of text without |")
        if isinstance(self.overrides, str):
            raise ValueError(
                f"Variant.overrides is {self.overrides!r}: give a tuple of bindings, (…,)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure that runs are compared by.

    Attributes:
      name: of an evaluation, as `metrics.jsonl` has it: "eval/loss".
      less_is_better: whether a smaller one is.
      last: takes a run's last evaluation instead of its best.
    """

    name: str
    less_is_better: bool = True
    last: bool = False

    def __post_init__(self):
        if not self.name.startswith("eval/"):
            raise ValueError(
                f"Metric.name is {self.name!r}: give one of an evaluation, such as 'eval/loss'"
            )

    def of(self, curve: Curve) -> float:
        """The figure of a run."""
        if self.last:
            return curve[max(curve)]
        return min(curve.values()) if self.less_is_better else max(curve.values())

    def told(self) -> str:
        """How to read it."""
        return (
            f"{'less' if self.less_is_better else 'more'} is better; "
            f"the {'last' if self.last else 'best'} evaluation of each run"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked, and the runs that answer.

    Attributes:
      question: in words.
      variants: two or more; the others are compared with the first.
      metrics: one or more.
      caveat: what the comparison can't tell, such as that losses have another scale.
    """

    question: str
    variants: Sequence[Variant]
    metrics: Sequence[Metric]
    caveat: str = ""

    def __post_init__(self):
        names = [variant.name for variant in self.variants]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"Study.variants are {names}: give two or more, each its own name")
        if not self.metrics:
            raise ValueError("Study.metrics is empty: give one or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
      run: the digest of all that decides it: equal runs have equal ones.
      codes: digests of the versions of the program that were at it.
      curves: by metric; empty if it did not end well.
      items: what the figure is the mean of, by metric, where that is known; the i-th of every run
        is of the same thing, such as a caption.
      missing: why there are none, in words.
    """

    run: str
    codes: Sequence[str] = ()
    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    items: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    missing: str = ""


def read_curves(path: pathlib.Path, names: Sequence[str]) -> dict[str, dict[int, float]]:
    """The curves of metrics in a `metrics.jsonl`; of a step that was taken twice the later counts.

    A kill may leave half a line, to which the next run's first is appended: that one counts.
    """
    curves: dict[str, dict[int, float]] = {name: {} for name in names}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line[line.rfind("{") :])
        except ValueError:
            continue
        for name in names:
            if name in record:
                curves[name][record["step"]] = record[name]
    return curves


def read_items(path: pathlib.Path, names: Sequence[str]) -> dict[str, list[float]]:
    """The items of metrics, see `Outcome`; a training leaves none."""
    items = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: items[name] for name in names if name in items}


def paired_difference(variant_S: np.ndarray, base_S: np.ndarray) -> Estimate:
    """The mean difference of runs from the same seeds, and its interval by Student's t.

    A seed decides weights, batches and the rows that are evaluated on, so that differences of pairs
    vary less than the runs do. The interval tells how far other seeds would move the mean; it takes
    differences as normally distributed. From one seed nothing follows: it is infinite.
    """
    differences_S = np.asarray(variant_S, np.float64) - np.asarray(base_S, np.float64)
    n, mean = len(differences_S), float(differences_S.mean())
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, n)
    half = _t(n) * float(differences_S.std(ddof=1)) / n**0.5
    return Estimate(mean, mean - half, mean + half, n)


def difference_of_items(variant_SN: np.ndarray, base_SN: np.ndarray) -> Estimate:
    """The mean difference of runs whose figures are means of items, by the bootstrap over items.

    An item is first averaged over seeds: the interval tells how far other items, such as other
    captions, would move the mean.
    """
    differences_SN = np.asarray(variant_SN, np.float64) - np.asarray(base_SN, np.float64)
    return bootstrap.mean(differences_SN.mean(axis=0), level=_LEVEL)


def _t(n: int) -> float:
    """Standard errors from the mean of n figures to either end of its interval."""
    return float(scipy.special.stdtrit(n - 1, (1 + _LEVEL) / 2))


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant's figures by one metric.

    Attributes:
      variant: its name.
      values: by seed, of the runs that ended well.
      mean: of these; None without any.
      difference: from the first variant, over the seeds that both have; None without any, and of
        the first variant itself.
      over: what the interval of the difference is over, "seeds" or "items".
      verdict: "better", "worse", "not separated" where the interval holds 0, or why there is none.
    """

    variant: str
    values: Mapping[int, float]
    mean: float | None
    difference: Estimate | None
    over: str
    verdict: str


def rows(study: Study, metric: Metric, outcomes: Mapping[tuple[str, int], Outcome]) -> list[Row]:
    """The study by one of its metrics, a row a variant.

    Args:
      study: what was asked.
      metric: of its metrics.
      outcomes: of every run, by variant and seed.
    """
    of: dict[str, dict[int, Outcome]] = {variant.name: {} for variant in study.variants}
    for (name, seed), outcome in outcomes.items():
        of[name][seed] = outcome
    first = of[study.variants[0].name]
    return [_row(metric, name, runs, first) for name, runs in of.items()]


def _row(
    metric: Metric, name: str, runs: Mapping[int, Outcome], first: Mapping[int, Outcome]
) -> Row:
    """A variant's row; both have outcomes by seed."""
    values, base = _figures(metric, runs), _figures(metric, first)
    mean = float(np.mean(list(values.values()))) if values else None
    seeds = [seed for seed in values if seed in base]
    if runs is first or not seeds:
        return Row(name, values, mean, None, "", "")
    items = [[of[seed].items.get(metric.name, ()) for seed in seeds] for of in (runs, first)]
    lengths = {len(items_N) for items_SN in items for items_N in items_SN}
    if len(lengths) == 1 and 0 not in lengths:
        difference, over = difference_of_items(*items), "items"
    else:
        pairs = [[of[seed] for seed in seeds] for of in (values, base)]
        difference, over = paired_difference(*pairs), "seeds"
    same = {one.run for one in runs.values()} == {one.run for one in first.values()}
    told = "the same runs" if same else _verdict(difference, metric)
    return Row(name, values, mean, difference, over, told)


def _figures(metric: Metric, runs: Mapping[int, Outcome]) -> dict[int, float]:
    return {
        seed: metric.of(outcome.curves[metric.name])
        for seed, outcome in runs.items()
        if outcome.curves.get(metric.name)
    }


def _verdict(difference: Estimate, metric: Metric) -> str:
    if difference.n < 2:
        return "one seed: no interval"
    if difference.low <= 0 <= difference.high:
        return "not separated"
    return "better" if (difference.value < 0) == metric.less_is_better else "worse"


def record(study: Study, outcomes: Mapping[tuple[str, int], Outcome]) -> dict[str, Any]:
    """The study, its runs with their curves, and its rows by metric, JSON-ready."""
    return {
        **dataclasses.asdict(study),
        "runs": [
            {
                "variant": name,
                "seed": seed,
                "run": outcome.run,
                "codes": outcome.codes,
                "curves": outcome.curves,
                "missing": outcome.missing,
            }
            for (name, seed), outcome in outcomes.items()
        ],
        "figures": {
            metric.name: [_json_ready(row) for row in rows(study, metric, outcomes)]
            for metric in study.metrics
        },
    }


def _json_ready(row: Row) -> dict[str, Any]:
    ready = dataclasses.asdict(row)
    if row.difference is not None and row.difference.n < 2:
        ready["difference"] |= {"low": None, "high": None}  # JSON has no infinity
    return ready


def markdown(study: Study, outcomes: Mapping[tuple[str, int], Outcome], title: str) -> str:
    """The study as a page: its tables, how to read them, and what was expected."""
    seeds = sorted({seed for _, seed in outcomes})
    first = study.variants[0].name
    page, over = [f"# {title}", study.question], set()
    for metric in study.metrics:
        by_seed = [f"seed {seed}" for seed in seeds]
        head = ["variant", *by_seed, "mean", f"difference from {first}", ""]
        found = rows(study, metric, outcomes)
        of = sorted({row.over for row in found} - {""})
        over |= set(of)
        told = "; ".join([metric.told(), *(f"intervals over {what}" for what in of)])
        table = [
            [
                row.variant,
                *(row.values.get(seed, outcomes[row.variant, seed].missing) for seed in seeds),
                "–" if row.mean is None else row.mean,
                _told(row.difference),
                row.verdict,
            ]
            for row in found
        ]
        page += [f"**{metric.name}** ({told})", report.table(head, table, _DIGITS)]
    page.append(
        f"In brackets {100 * _LEVEL:.0f} % intervals of the mean difference, over pairs of runs "
        'from the same seed; "not separated": the interval holds 0. Several variants are not '
        "corrected for."
    )
    if "seeds" in over:
        page.append(
            "Over seeds: by Student's t; they tell how far other seeds would move it, not what "
            "other data or longer training would."
        )
        if len(seeds) == 2:
            page[-1] += (
                " Two seeds leave one degree of freedom: the standard error is a guess from two "
                f"differences, and an interval reaches {_t(2):.1f} of it to either side."
            )
    if "items" in over:
        page.append(
            "Over items, such as clips, where a figure is a mean of these: by the bootstrap, each "
            "item averaged over the seeds; they tell how far other items would move it."
        )
    if study.caveat:
        page.append(study.caveat)
    programs = {code for outcome in outcomes.values() for code in outcome.codes}
    if len(programs) > 1:
        page.append(
            "**These runs were made by different versions of the program**: what sets them "
            "apart may be that. Give another --out to make them all anew."
        )
    expected = [
        [v.name, "<br>".join(f"`{binding}`" for binding in v.overrides) or "–", v.expected]
        for v in study.variants
    ]
    page += ["What was expected:", report.table(["variant", "overrides", "expected"], expected)]
    return "\n\n".join(page) + "\n"


def _told(difference: Estimate | None) -> str | Estimate:
    if difference is None:
        return "–"
    return difference if difference.n > 1 else f"{difference.value:.{_DIGITS}f}"
