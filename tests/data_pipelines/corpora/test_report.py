"""The report counts what is there, shows it, and cannot be spoilt by what it shows."""

import html.parser
import re
import types

import pytest

from data_pipelines import manifest
from data_pipelines.corpora import corpus, facts, plots, report


def _clip(number, **changes):
    fields = {
        "file": f"{number}.wav",
        "sha256": f"{number:064x}",
        "seconds": 36.0,
        "sample_rate": 44_100,
        "channels": 2,
        "licence": "CC0-1.0",
        "split": "train",
    }
    return manifest.Clip(**fields | changes)


def _captions(**texts):
    return tuple(manifest.Caption(kind=kind, text=text) for kind, text in texts.items())


CLIPS = [
    _clip(1, captions=_captions(long="A slow tune for piano.", tags="slow, piano")),
    _clip(2, captions=_captions(short="the piano of piano")),
    _clip(3, split="test", sample_rate=16_000, channels=1, licence=""),
    _clip(4, sha256=f"{1:064x}", split="test"),
    _clip(5, sha256=f"{2:064x}", licence="<script>alert(1)</script>"),
    _clip(6, sha256=f"{2:064x}"),
]
LEFT_OUT = [
    *(corpus.LeftOut(name=f"gone{i}.mp3", reason=corpus.MISSING) for i in range(30)),
    corpus.LeftOut(name="<b>.mp3", reason="cannot be read: Format not recognised"),
]


@pytest.fixture
def made(tmp_path):
    return corpus.Made(manifest=manifest.write(tmp_path, CLIPS), left_out=LEFT_OUT)


def test_facts(made):
    told = facts.count(made.manifest, made.left_out)
    assert told.clips == 6
    assert told.hours == pytest.approx(6 * 36 / 3600)
    assert {split: len(seconds) for split, seconds in told.seconds.items()} == {
        "train": 4,
        "test": 2,
    }
    assert told.formats == {(16_000, 1): 1, (44_100, 2): 5}
    assert told.licences == {"CC0-1.0": 4, "": 1, "<script>alert(1)</script>": 1}
    assert told.captions == {"short": {4: 1}, "long": {5: 1}, "tags": {2: 1}}
    assert told.with_captions == 2
    assert told.words["piano"] == 3  # captions that hold it, not how often
    assert "the" not in told.words
    assert (told.superfluous, told.leaks) == (3, 1)
    assert [len(names) for names in told.left_out.values()] == [30, 1]


class _Page(html.parser.HTMLParser):
    """Collects text, tags, and what the page would fetch."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.fetched = "", [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_all_and_needs_nothing(made):
    path = report.write(made, name="mine & yours")
    assert path == made.manifest.with_name("report.html")
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == len(plots.draw(facts.count(made.manifest, LEFT_OUT))) == 6
    assert "script" not in page.tags
    assert "b.mp3" not in page.tags
    # Parts of a picture refer to one another; nothing comes from elsewhere.
    elsewhere = [link for link in page.fetched if not link.startswith("#")]
    assert not elsewhere
    for told in ("mine & yours", "16 kHz", "44.1 kHz", "not told", "gone0.mp3", "and 10 more"):
        assert told in page.text, told
    assert "1 of them lie in more than one split" in page.text
    assert re.search(r"0\.1\s*hours", page.text)
    assert [p.name for p in made.manifest.parent.glob(".*")] == []


def test_pages_of_two_manifests_in_a_folder_do_not_collide(tmp_path):
    pages = {
        report.write(corpus.Made(manifest=manifest.write(tmp_path / name, CLIPS)), name="x")
        for name in ("a.parquet", "b.parquet", manifest.NAME)
    }
    assert len(pages) == 3


def test_the_same_corpus_makes_the_same_page(made):
    first = report.write(made, name="x").read_bytes()
    assert report.write(made, name="x").read_bytes() == first


@pytest.mark.parametrize("seconds", [[10.0] * 5, [0.0, 0.2], [1.0, 7200.0, 20_000.0], [1e-3]])
def test_durations_of_any_spread_are_drawn(tmp_path, seconds):
    clips = [_clip(i, seconds=value) for i, value in enumerate(seconds)]
    told = facts.count(manifest.write(tmp_path, clips), ())
    pictures = plots.draw(told)
    assert "Captions, by number of words" not in pictures
    axes = pictures["Durations"].axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == len(seconds)
    assert axes.get_xticks().size > 0


def test_many_licences_are_summed_up(tmp_path):
    clips = [_clip(i, licence=f"licence {i}") for i in range(25)]
    told = facts.count(manifest.write(tmp_path, clips), ())
    text = report.page(told, name="x", where="y")
    assert "15 others" in text


def test_every_caption_is_in_a_bar():
    lengths = {1: 2, 121: 3, 122: 4}
    figure = plots._captions(types.SimpleNamespace(captions={"long": lengths}))
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert sum(heights) == sum(lengths.values())
