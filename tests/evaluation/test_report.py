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


def test_a_table_shows_estimates_with_their_intervals():
    table = report.table(
        ["", "a"], [["x", Estimate(0.5, 0.25, 0.75, 8)], ["y", 0.125], ["z", 1200]]
    )
    assert table == (
        "|  | a |\n| --- | --- |\n| x | 0.50 (0.25 to 0.75) |\n| y | 0.12 |\n| z | 1,200 |"
    )
