"""The arithmetic and the words of an ablation, against figures worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats

from musiclm.evaluation import ablation
from musiclm.evaluation.ablation import Metric, Outcome, Study, Variant

LOSS = Metric(name="eval/loss")


def variant(name, *overrides):
    return Variant(name=name, overrides=overrides, expected="?")


def study(*names, **fields):
    fields = {"question": "Why?", "metrics": (LOSS,)} | fields
    return Study(variants=[variant(name) for name in names], **fields)


def outcomes(losses, codes=("program",)):
    """Runs of one evaluation each, by variant; None is a run that failed."""
    made = {}
    for name, of_seeds in losses.items():
        for seed, loss in enumerate(of_seeds):
            made[name, seed] = (
                Outcome(run=f"{name} {seed}", missing="failed with code 44")
                if loss is None
                else Outcome(run=f"{name} {seed}", codes=codes, curves={"eval/loss": {10: loss}})
            )
    return made


def test_two_seeds_by_hand():
    """Differences 0.1 and 0.3: mean 0.2, standard error 0.1, 12.706 of them to either side."""
    runs = outcomes({"base": [1.0, 2.0], "other": [1.1, 2.3]})
    base, other = ablation.rows(study("base", "other"), LOSS, runs)
    assert (base.values, base.mean, base.difference) == ({0: 1.0, 1: 2.0}, 1.5, None)
    assert other.mean == pytest.approx(1.7)
    found = other.difference
    assert found.n == 2
    assert (found.value, found.low, found.high) == pytest.approx((0.2, -1.0706, 1.4706), abs=1e-4)
    assert other.verdict == "not separated"


@pytest.mark.parametrize(
    ("differences", "less_is_better", "told"),
    [
        ([0.20, 0.21, 0.22], True, "worse"),
        ([0.20, 0.21, 0.22], False, "better"),
        ([-0.20, -0.21, -0.22], True, "better"),
        ([-0.20, 0.21, 0.22], True, "not separated"),
        ([0.0, 0.0, 0.0], True, "not separated"),
        ([0.5], True, "one seed: no interval"),
    ],
)
def test_what_is_separated(differences, less_is_better, told):
    base = [1.0, 5.0, 3.0][: len(differences)]
    others = [a + b for a, b in zip(base, differences, strict=True)]
    metric = Metric(name="eval/loss", less_is_better=less_is_better)
    compared = ablation.rows(study("a", "b"), metric, outcomes({"a": base, "b": others}))
    assert compared[1].verdict == told


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    a_S, b_S = rng.normal(size=(2, 7))
    found = ablation.paired_difference(a_S, b_S)
    low, high = scipy.stats.ttest_rel(a_S, b_S).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_seed_says_nothing():
    found = ablation.paired_difference([1.0], [2.0])
    assert (found.value, found.low, found.high) == (-1.0, -math.inf, math.inf)


def test_what_failed_is_left_out_of_pairs():
    """The mean is over those that are there, the difference over seeds that both have."""
    runs = outcomes({"base": [1.0, None, 3.0], "other": [2.0, 9.0, 5.0], "none": [None] * 3})
    base, other, none = ablation.rows(study("base", "other", "none"), LOSS, runs)
    assert base.mean == 2.0
    assert other.mean == pytest.approx(16 / 3)
    assert (other.difference.value, other.difference.n) == (1.5, 2)
    assert (none.values, none.mean, none.difference, none.verdict) == ({}, None, None, "")
    page = ablation.markdown(study("base", "other", "none"), runs, "title")
    assert page.count("failed with code 44") == 4


def test_equal_runs_are_told():
    runs = outcomes({"base": [1.0, 2.0]})
    runs |= {("again", seed): runs["base", seed] for seed in (0, 1)}
    assert ablation.rows(study("base", "again"), LOSS, runs)[1].verdict == "the same runs"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1.0),
        ({"last": True}, 2.0),
        ({"less_is_better": False}, 3.0),
        ({"less_is_better": False, "last": True}, 2.0),
    ],
)
def test_which_evaluation_counts(fields, expected):
    assert Metric(name="eval/loss", **fields).of({20: 1.0, 10: 3.0, 30: 2.0}) == expected


def test_the_page_has_what_is_in_the_study():
    asked = Study(
        question="Why?",
        variants=[variant("base"), variant("other", "a.b = 1", "c.d = 2")],
        metrics=[LOSS],
        caveat="Mind the scale.",
    )
    page = ablation.markdown(asked, outcomes({"base": [1.0, 2.0], "other": [1.1, 2.3]}), "title")
    assert "| variant | seed 0 | seed 1 | mean | difference from base |  |" in page
    assert "| base | 1.0000 | 2.0000 | 1.5000 | – |  |" in page
    assert (
        "| other | 1.1000 | 2.3000 | 1.7000 | 0.2000 (-1.0706 to 1.4706) | not separated |" in page
    )
    assert "| other | `a.b = 1`<br>`c.d = 2` | ? |" in page
    assert "an interval reaches 12.7 of it" in page
    assert "Mind the scale." in page
    assert "different versions" not in page


def test_runs_of_different_programs_are_told():
    runs = outcomes({"base": [1.0]}) | outcomes({"other": [1.1]}, codes=("newer",))
    page = ablation.markdown(study("base", "other"), runs, "title")
    assert "different versions of the program" in page


def test_the_record_is_json_without_infinities():
    asked = study("base", "other")
    runs = outcomes({"base": [1.0], "other": [1.5]})
    record = json.loads(json.dumps(ablation.record(asked, runs), allow_nan=False))
    assert record["figures"]["eval/loss"][1]["difference"] == {
        "value": 0.5,
        "low": None,
        "high": None,
        "n": 1,
    }
    assert record["runs"][1]["curves"] == {"eval/loss": {"10": 1.5}}
    assert record["variants"][0] == dataclasses.asdict(variant("base")) | {"overrides": []}


def test_curves_of_a_run_that_was_killed(tmp_path):
    """The half line that the kill left does not hide the first of the next run."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "loss": 9.0}\n{"step": 10, "eval/loss": 3.0}\n'
        '{"step": 20, "eval/loss": 2.0}\n{"step": 30, "ev{"step": 20, "eval/loss": 2.5}\n{"st'
    )
    found = ablation.read_curves(path, ["eval/loss", "eval/accuracy"])
    assert found == {"eval/loss": {10: 3.0, 20: 2.5}, "eval/accuracy": {}}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: variant("a|b"), r"Variant.name is 'a\|b'"),
        (lambda: variant(" "), "Variant.name is ' '"),
        (lambda: Variant(name="a", overrides="b.c = 1", expected=""), r"give a tuple of bindings"),
        (lambda: Metric(name="loss"), "Metric.name is 'loss'"),
        (lambda: study("one"), r"Study.variants are \['one'\]"),
        (lambda: study("a", "a"), "each its own name"),
        (lambda: study("a", "b", metrics=()), "Study.metrics is empty"),
    ],
)
def test_what_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def measured(items):
    """Runs of one figure each, by variant and seed: the mean of items."""
    return {
        (name, seed): Outcome(
            run=f"{name} {seed}",
            codes=("program",),
            curves={"eval/loss": {0: float(np.mean(items_N))}},
            items={"eval/loss": items_N},
        )
        for name, of_seeds in items.items()
        for seed, items_N in enumerate(of_seeds)
    }


def test_items_that_belong_together_are_compared():
    """They vary much more than their differences do; two seeds alone would tell nothing."""
    rng = np.random.default_rng(0)
    base_SN = rng.normal(scale=10, size=(2, 100))
    other_SN = base_SN + 0.1 + rng.normal(scale=0.1, size=(2, 100))
    found = ablation.difference_of_items(other_SN, base_SN)
    differences_N = (other_SN - base_SN).mean(axis=0)
    low, high = scipy.stats.ttest_1samp(differences_N, 0).confidence_interval(0.95)
    assert found.n == 100
    assert found.value == pytest.approx(differences_N.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
    runs = measured({"base": base_SN.tolist(), "other": other_SN.tolist()})
    _, row = ablation.rows(study("base", "other"), LOSS, runs)
    assert (row.difference, row.over, row.verdict) == (found, "items", "worse")
    page = ablation.markdown(study("base", "other"), runs, "title")
    assert "of each run; intervals over items)" in page
    assert "by the bootstrap" in page
    assert "Student" not in page


def test_items_of_one_seed_have_an_interval():
    runs = measured({"base": [[1.0, 2.0, 3.0]], "other": [[2.0, 3.0, 4.0]]})
    _, row = ablation.rows(study("base", "other"), LOSS, runs)
    assert (row.difference.low, row.difference.high, row.verdict) == (1.0, 1.0, "worse")


@pytest.mark.parametrize("other", [[[1.0, 2.0]] * 2, [[1.0, 2.0, 3.0], [1.0, 2.0]]])
def test_items_that_are_not_as_many_are_not_compared(other):
    runs = measured({"base": [[1.0, 2.0, 3.0]] * 2, "other": other})
    assert ablation.rows(study("base", "other"), LOSS, runs)[1].over == "seeds"


def test_items_are_not_in_the_record():
    runs = measured({"base": [[1.0, 2.0]], "other": [[1.0, 3.0]]})
    record = ablation.record(study("base", "other"), runs)
    assert set(record["runs"][0]) == {"variant", "seed", "run", "codes", "curves", "missing"}
    assert record["figures"]["eval/loss"][1]["over"] == "items"
