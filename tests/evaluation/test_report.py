import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm.errors import UserError
from musiclm.evaluation import report
from musiclm.evaluation.bootstrap import Estimate

DOCUMENT = f"# Title\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"
texts = st.text().filter(lambda text: "<!--" not in text)


@settings(deadline=None)
@given(texts, texts, texts, texts)
def test_insertion_is_idempotent_and_keeps_the_rest(before, old, after, section):
    document = f"{before}{report.BEGIN}{old}{report.END}{after}"
    once = report.insert(document, section)
    assert report.insert(once, section) == once
    assert once.startswith(before + report.BEGIN)
    assert once.endswith(report.END + after)
    assert section.strip() in once


def test_what_stood_there_is_gone():
    inserted = report.insert(DOCUMENT, "new")
    assert inserted == DOCUMENT.replace("old", "new")


@pytest.mark.parametrize(
    "document", ["nothing", report.BEGIN, DOCUMENT * 2, f"{report.END} {report.BEGIN}"]
)
def test_markers_must_be_there(document):
    with pytest.raises(UserError, match="figures:"):
        report.insert(document, "new")


TABLE = report.Table(
    title="Things",
    note="more is better.",
    rests_on=("a model (0a1b)", "a set"),
    head=("", "a", "b"),
    rows=(("x", Estimate(0.5, 0.25, 0.75, 8), ""), ("y", 0.125, "none"), ("z", 1200, 3)),
)


def test_a_table_shows_estimates_with_their_intervals():
    assert TABLE.markdown() == (
        "**Things**: more is better. Rests on a model (0a1b) and a set.\n\n"
        "|  | a | b |\n| --- | --- | --- |\n| x | 0.50 (0.25 to 0.75) |  |\n| y | 0.12 | none |\n"
        "| z | 1,200 | 3 |"
    )


def test_a_record_has_all_digits_and_no_empty_cells():
    record = json.loads(json.dumps(TABLE.record()))
    assert record["figures"] == {
        "x": {"a": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}},
        "y": {"a": 0.125, "b": "none"},
        "z": {"a": 1200, "b": 3},
    }
    assert record["rests_on"] == ["a model (0a1b)", "a set"]


def test_a_row_that_does_not_fit_the_head_is_named():
    with pytest.raises(ValueError, match="'Things': the row 'w'"):
        dataclasses.replace(TABLE, rows=(*TABLE.rows, ("w", 1)))
    with pytest.raises(ValueError, match="names a column twice"):
        dataclasses.replace(TABLE, head=("", "a", "a"))
