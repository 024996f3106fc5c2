"""Output folders: whole, or not there."""

import pytest

from musiclm import errors
from musiclm.bin import staging


def test_files_appear_together(tmp_path):
    with staging.staged(tmp_path / "new" / "out", last="z") as folder:
        (folder / "z").write_text("there")
        assert not (tmp_path / "new" / "out" / "z").exists()
    assert (tmp_path / "new" / "out" / "z").read_text() == "there"
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["z"]


def test_folders_made_on_the_way_to_one_that_cannot_be_are_gone(tmp_path):
    impossible = tmp_path / "new" / "deeper" / ("a" * 300)
    with (
        pytest.raises(errors.UserError, match="cannot write to"),
        staging.staged(impossible, last="z"),
    ):
        pytest.fail("no place to write")
    assert not list(tmp_path.iterdir())


def test_after_an_error_only_what_was_there_stays(tmp_path):
    (tmp_path / "mine").write_text("kept")

    def fail():
        with staging.staged(tmp_path / "a" / "b", last="z") as folder:
            (folder / "z").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
