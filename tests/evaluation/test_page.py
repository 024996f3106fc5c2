"""The page of a report."""

import dataclasses
import html.parser

from musiclm.evaluation import page
from musiclm.evaluation.bootstrap import Estimate
from musiclm.evaluation.report import Table

TABLE = Table(
    title="A & B <c>",
    note="5 < 6",
    head=("", "share", "words"),
    rows=(("real", Estimate(0.5, 0.25, 0.75, 8), "few"), ("chance", 0.1, "")),
)
CLIPS = {'a "calm" <tune>': {"made": "clips/a.wav", "real": "../b #2.wav"}}


class Reader(html.parser.HTMLParser):
    """Collects text and sources of sound, and holds tags to their order."""

    def __init__(self):
        super().__init__()
        self.words, self.sounds, self.open, self.counts = [], [], [], {}

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag == "audio":
            self.sounds.append(dict(attrs)["src"])
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_a_page_has_tables_pictures_and_players():
    reader = read(page.page("Title", "opening", [TABLE], CLIPS))
    for words in ("A & B <c>", "5 < 6", "0.50 (0.25 to 0.75)", 'a "calm" <tune>', "opening"):
        assert words in reader.words
    assert reader.sounds == ["clips/a.wav", "../b%20%232.wav"]
    assert reader.counts["svg"] == 1


def test_a_table_without_intervals_has_no_picture():
    plain = dataclasses.replace(TABLE, rows=(("real", 0.5, "few"),))
    assert "svg" not in read(page.page("Title", "opening", [plain], {})).counts


def test_the_same_report_is_the_same_page():
    assert page.page("T", "o", [TABLE], CLIPS) == page.page("T", "o", [TABLE], CLIPS)
