"""Digests of the library's sources."""

import pytest

from musiclm.evaluation import sources


@pytest.fixture
def library(tmp_path, monkeypatch):
    for place in ("__init__.py", "audio.py", "models/a.py", "models/deep/b.py", "models_too.py"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {place}\n")
    monkeypatch.setattr(sources, "_LIBRARY", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "decides"),
    [("audio.py", True), ("models/deep/b.py", True), ("models_too.py", False)],
)
def test_what_decides_changes_the_digest_and_nothing_else_does(library, place, decides):
    parts = ("audio.py", "models")
    before, whole = sources.digest(*parts), sources.digest()
    assert before != whole
    (library / "models/notes.txt").write_text("no source")
    assert (sources.digest(*parts), sources.digest()) == (before, whole)
    (library / place).write_text("# changed\n")
    assert (sources.digest(*parts) != before) == decides
    assert sources.digest() != whole


def test_where_a_source_lies_decides(library):
    before = sources.digest("models")
    (library / "models/a.py").rename(library / "models/c.py")
    assert sources.digest("models") != before
