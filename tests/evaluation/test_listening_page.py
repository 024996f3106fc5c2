"""The page of a listening test: what is compared, and the page itself in a browser."""

import collections
import json
import time

import numpy as np
import pytest
import soundfile

from musiclm import audio
from musiclm.bin import folders
from musiclm.errors import UserError
from musiclm.evaluation import listening, listening_answers, listening_page

RATE = 8_000
SECONDS = 0.3
SYSTEMS = ("smallish", "largeish", "realish")
PROMPTS = ("calm flute", "fast </script> drums & “$title”", "slow piano")

# Tones that a test need not wait for: what would sound is looked at instead.
SILENT_TONES = """
AudioBufferSourceNode.prototype.start = function () {
  window.heardTones = this.buffer;
  setTimeout(() => this.onended());
};
"""


def write_folder(folder, prompts, *, rate=RATE, seconds=SECONDS, level=0.1):
    """Clips as `musiclm generate` leaves them, each of other sound."""
    folder.mkdir()
    lines = []
    for i, prompt in enumerate(prompts):
        samples = level * np.random.default_rng([i, round(100 * level)]).normal(
            size=round(rate * seconds)
        )
        line = {"file": f"{i:03d}.wav", "prompt": prompt, "model": folder.name}
        audio.write_wav(folder / line["file"], samples.astype(np.float32), rate, line)
        lines.append(json.dumps(line) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """Clips of three systems by prompt; one has a prompt that the others lack."""
    root = tmp_path_factory.mktemp("systems")
    return {
        name: folders.read(
            write_folder(root / name, [f"only {name}", *PROMPTS], level=0.1 + 0.05 * i)
        )
        for i, name in enumerate(SYSTEMS)
    }


@pytest.fixture(scope="module")
def made(systems, tmp_path_factory):
    """A test of all comparisons: its folder and its key."""
    folder = tmp_path_factory.mktemp("test")
    return folder, listening_page.write(listening_page.design(systems), folder)


# What is compared -------------------------------------------------------------------------------


def pairs_of(test):
    return collections.Counter(
        frozenset(comparison.systems.values()) for comparison in test.comparisons
    )


def test_every_common_prompt_by_every_pair(systems):
    test = listening_page.design(systems)
    assert len(test.comparisons) == test.per_participant == 9
    assert set(pairs_of(test).values()) == {3}
    told = {(each.prompt, frozenset(each.systems.values())) for each in test.comparisons}
    assert len(told) == 9
    assert {each.prompt for each in test.comparisons} == set(PROMPTS)
    for comparison in test.comparisons:
        for name, system in comparison.systems.items():
            assert test.clips[name] == systems[system][comparison.prompt, 0]


@pytest.mark.parametrize("count", [3, 4, 8])
def test_fewer_are_spread_over_the_pairs(systems, count):
    test = listening_page.design(systems, num_comparisons=count, per_participant=2, seed=3)
    assert len(test.comparisons) == count
    counts = [pairs_of(test)[frozenset(pair)] for pair in pairs_of(listening_page.design(systems))]
    assert max(counts) - min(counts) <= 1
    assert {name for each in test.comparisons for name in each.systems} == set(test.clips)
    assert test.per_participant == 2


def test_a_seed_decides_and_another_decides_otherwise(systems):
    designs = [listening_page.design(systems, seed=seed) for seed in (5, 5, 6)]
    assert designs[0] == designs[1] != designs[2]


def test_names_and_orders_tell_no_system(systems):
    """Over seeds, each system has as many first names and places as the others, and each pair."""
    first_clip, first_place, first_pair = (collections.Counter() for _ in range(3))
    for seed in range(300):
        test = listening_page.design(systems, seed=seed)
        first_clip[test.clips[min(test.clips)].parent.name] += 1
        first_place.update(next(iter(each.systems.values())) for each in test.comparisons)
        first_pair[frozenset(test.comparisons[0].systems.values())] += 1
    assert len(first_pair) == 3
    assert min(first_pair.values()) > 70  # of 100 expected
    assert min(first_clip[name] for name in SYSTEMS) > 70
    assert min(first_place[name] for name in SYSTEMS) > 800  # of 900


def test_clips_of_one_prompt_meet_in_their_order(tmp_path):
    systems = {
        name: folders.read(write_folder(tmp_path / name, prompts))
        for name, prompts in (("a", ["x", "x", "y"]), ("b", ["x", "z", "x", "x"]))
    }
    test = listening_page.design(systems)
    met = {
        tuple(sorted(str(test.clips[name].relative_to(tmp_path)) for name in each.systems))
        for each in test.comparisons
    }
    assert met == {("a/000.wav", "b/000.wav"), ("a/001.wav", "b/002.wav")}


def test_the_folder_tells_no_system_and_holds_the_sound(systems, made):
    folder, key = made
    files = list(folder.iterdir())
    assert len(files) == 10
    for file in files:
        content = file.read_bytes() + file.name.encode()
        assert not any(name.encode() in content for name in SYSTEMS)
    sizes = {file.stat().st_size for file in files if file.suffix == ".wav"}
    assert len(sizes) == 1
    for clips in key.comparisons.values():
        for clip, system in clips.items():
            assert audio.read_provenance(folder / clip) is None
            heard, rate = soundfile.read(folder / clip)
            assert rate == RATE
            # The clip of that system, to the bit.
            assert any(
                np.array_equal(heard, soundfile.read(path)[0]) for path in systems[system].values()
            )


def test_the_same_clips_make_the_same_bytes_and_others_another_test(systems, made, tmp_path):
    folder, key = made
    assert listening_page.write(listening_page.design(systems), tmp_path) == key
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    other = listening_page.write(listening_page.design(systems, title="Other"), tmp_path)
    assert other.test != key.test


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"num_comparisons": 10}, "10 comparisons: 9 can be made of these folders"),
        ({"num_comparisons": 0}, "0 comparisons"),
        ({"num_comparisons": 4, "per_participant": 5}, "5 comparisons a participant: 4 are there"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_out_of_range_are_told(systems, choices, told):
    with pytest.raises(UserError, match=told):
        listening_page.design(systems, **choices)


@pytest.mark.parametrize(
    ("odd", "told"),
    [({"rate": 16_000}, "16000 Hz.*resample"), ({"seconds": 0.6}, r"0\.6 s.*cut the longer")],
)
def test_clips_that_differ_in_form_are_told(tmp_path, odd, told):
    paths = write_folder(tmp_path / "a", ["x"]), write_folder(tmp_path / "b", ["x"], **odd)
    test = listening_page.design({path.name: folders.read(path) for path in paths})
    with pytest.raises(UserError, match=told):
        listening_page.write(test, tmp_path)


@pytest.mark.parametrize(
    "line", ["{", "3", "{}", '{"prompt": "x"}', '{"prompt": 3, "file": "a.wav"}']
)
def test_a_line_that_is_no_clip_is_told(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text(f'{{"prompt": "x", "file": "000.wav"}}\n\n{line}\n')
    with pytest.raises(UserError, match=r"line 3 of .*manifest\.jsonl' is no clip"):
        folders.read(tmp_path)


# The page in a browser --------------------------------------------------------------------------


@pytest.fixture
def open_page(made, new_page):
    """Opens the page for a participant, with tones that don't sound."""

    def open_page(query):
        page = new_page()
        page.call("Page.addScriptToEvaluateOnNewDocument", source=SILENT_TONES)
        page.open(f"{(made[0] / 'index.html').as_uri()}{query}")
        return page

    return open_page


def sections(page):
    """The ids of those that are seen."""
    return page.evaluate(
        "Array.from(document.querySelectorAll('section'))"
        ".filter((each) => each.checkVisibility()).map((each) => each.id)"
    )


def play_tones(page):
    """Plays a trial's tones by the button that has the focus."""
    page.evaluate("heardTones = null")
    page.press("Enter")
    page.wait("heardTones && !document.querySelector('#tones fieldset').disabled")


def softest_tone(page, mixed):
    """Which of the three tones is softest when the sides are mixed by such a function."""
    peaks = page.evaluate(
        "[0, 1, 2].map((tone) => { const period = heardTones.length / 3;"
        "const [left, right] = [0, 1].map((side) => heardTones.getChannelData(side)"
        ".subarray(tone * period, (tone + 1) * period));"
        f"return left.reduce((peak, l, i) => Math.max(peak, ({mixed})(l, right[i])), 0); }})"
    )
    return int(np.argmin(peaks))


def pass_headphones(page):
    """From the start to the first comparison, by keyboard alone."""
    page.press("Tab")
    page.press("Enter")  # begin
    page.press("Tab")
    page.press("Tab")
    for _ in range(6):
        play_tones(page)
        page.press("Tab")
        page.press(" ")
        for _ in range(softest_tone(page, "(left) => Math.abs(left)")):  # as in headphones
            page.press("ArrowRight")
        page.press("Enter")
    assert sections(page) == ["instructions"]
    page.press("Tab")
    page.press("Enter")
    assert sections(page) == ["comparison"]


def answer(page, digit):
    """Hears both clips of a comparison in real time, and answers, by keyboard alone."""
    for number, key in enumerate("ab"):
        page.press(key)
        page.wait(f"isHeard(players[{number}])")
    page.wait("!document.querySelector('#answer fieldset').disabled")
    page.press(digit)
    page.press("Enter")


def file_in(folder):
    """The file that the browser saves there; it makes an empty one first."""
    until = time.monotonic() + 60
    while not (found := [file for file in folder.glob("*.json") if file.stat().st_size]):
        assert time.monotonic() < until, "nothing was saved"
        time.sleep(0.02)
    return found[0]


@pytest.mark.slow
def test_from_the_start_to_the_analysis(made, open_page, browser, tmp_path):
    folder, key = made
    page = open_page("?participant=p%201%2F%C3%A9")
    assert page.evaluate("document.querySelector('#count').textContent") == "9 pairs of clips"
    pass_headphones(page)
    # Prefers the larger, strongly where it is real.
    digits = {
        ("smallish", "largeish"): "4",
        ("largeish", "smallish"): "2",
        ("largeish", "realish"): "5",
        ("realish", "largeish"): "1",
        ("smallish", "realish"): "5",
        ("realish", "smallish"): "1",
    }
    captions = {}
    for number in range(1, 10):
        assert page.evaluate("element('progress').textContent") == f"{number} of 9"
        clips = page.evaluate("players.map((each) => each.audio.src.split('/').at(-1))")
        id = next(id for id, systems in key.comparisons.items() if set(systems) == set(clips))
        captions[id] = page.evaluate("element('caption').textContent")
        answer(page, digits[tuple(key.comparisons[id][clip] for clip in clips)])
    assert sections(page) == ["end"]
    assert collections.Counter(captions.values()) == dict.fromkeys(PROMPTS, 3)

    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.press("Tab")
    page.press("Enter")  # save
    saved = file_in(tmp_path)
    assert saved.name == "answers-p_1_.json"
    assert not any(name in saved.read_text() for name in SYSTEMS)
    record = json.loads(saved.read_text())
    assert record["headphones"] == {"passed": True, "correct": 6, "trials": 6, "attempts": 1}
    assert record["code"] == page.evaluate("element('code').textContent")
    for each in record["answers"]:
        assert set(each) == {"id", "a", "b", "answer", "listened", "seconds", "time"}
        assert min(each["listened"].values()) >= 0.9 * SECONDS
        assert max(each["listened"].values()) <= SECONDS + 0.01
        assert each["seconds"] > SECONDS

    participant = listening_answers.read_answers(saved, key)
    assert participant.name == "p 1/é"
    figures = listening.analyse([participant], key, min_seconds=0)
    assert figures["participants"]["counted"] == {"p 1/é": record["code"]}
    assert {name: own["wins"] for name, own in figures["systems"].items()} == {
        "smallish": 0,
        "largeish": 3,
        "realish": 6,
    }
    assert [pair["mean_score"] for pair in figures["pairs"]] == [-1, -2, -2]

    # It asked for nothing but itself and the clips, and nothing went wrong.
    asked = {request["request"]["url"] for request in page.events("Network.requestWillBeSent")}
    assert {url.partition("?")[0] for url in asked if not url.startswith("blob:")} == {
        path.as_uri() for path in folder.iterdir()
    }
    assert not page.events("Runtime.exceptionThrown")
    assert not page.events("Log.entryAdded")


def test_tones_are_those_of_woods(open_page):
    page = open_page("?participant=tones")
    for key in ("Tab", "Enter", "Tab", "Tab"):
        page.press(key)
    play_tones(page)
    sides = page.evaluate("[0, 1].map((side) => Array.from(heardTones.getChannelData(side)))")
    left, right = np.array(sides).reshape(2, 3, -1)
    rate = page.evaluate("heardTones.sampleRate")
    peaks = np.abs(left).max(axis=1)
    softest = peaks.argmin()
    assert 20 * np.log10(peaks[softest] / np.delete(peaks, softest)) == pytest.approx(
        [-6.02, -6.02], abs=0.01
    )
    apart = [tone for tone in range(3) if np.array_equal(left[tone], -right[tone])]
    assert len(apart) == 1
    assert apart[0] != softest
    assert all(np.array_equal(left[tone], right[tone]) for tone in range(3) if tone != apart[0])
    for tone in left:
        spectrum = np.abs(np.fft.rfft(tone[:rate]))
        assert spectrum.argmax() == 200  # Hz, of one second
        assert not tone[round(rate) :].any()
        # It begins and ends softly.
        assert np.abs(tone[: rate // 100]).max() < 0.05 * np.abs(tone).max()
        assert np.abs(tone[rate - rate // 100 : rate]).max() < 0.05 * np.abs(tone).max()


def test_who_hears_no_difference_fails_and_may_try_again(open_page):
    page = open_page("?participant=loudspeakers")
    page.click("#begin")
    for attempt in (1, 2):
        for _ in range(6):
            page.evaluate("heardTones = null")
            page.click("#play-tones")
            page.wait("heardTones && !document.querySelector('#tones fieldset').disabled")
            vanished = softest_tone(page, "(l, r) => Math.abs(l + r)")  # between loudspeakers
            page.click(f"#tones label:nth-child({vanished + 1})")
            page.click("#tones .main")
        assert sections(page) == ["failed"]
        assert page.evaluate("state.headphones") == {
            "passed": False,
            "correct": 0,
            "trials": 6,
            "attempts": attempt,
        }
        page.click("#again" if attempt == 1 else "#anyway")
    assert sections(page) == ["instructions"]


def test_no_answer_before_both_are_heard(open_page):
    page = open_page("?participant=hasty")
    page.evaluate("show('instructions')")
    page.click("#start")
    barred = (
        "document.querySelector('#answer fieldset').disabled && "
        "document.querySelector('#answer .main').disabled"
    )

    def try_to_answer():
        page.press("1")
        page.evaluate("document.querySelector('#scale label').click()")
        page.evaluate("document.querySelector('#answer .main').click()")
        assert page.evaluate(barred)
        assert page.evaluate("state.answers.length") == 0

    try_to_answer()
    page.click("[data-side=b] button")
    page.wait("isHeard(players[1]) && players[1].audio.ended")
    assert "Listen to A first" in page.evaluate("element('wanted').textContent")
    try_to_answer()
    # The end alone is not the clip.
    page.evaluate("players[0].audio.currentTime = 0.2")
    page.click("[data-side=a] button")
    page.wait("players[0].audio.ended")
    try_to_answer()
    page.click("[data-side=a] button")
    page.wait("!document.querySelector('#answer fieldset').disabled")
    page.click("#scale label:nth-child(3)")
    page.click("#answer .main")
    page.wait("state.answers.length === 1")
    assert page.evaluate("state.answers[0].answer") == "no preference"
    assert page.evaluate(barred)  # the next one's


def test_one_clip_at_a_time(open_page):
    page = open_page("?participant=one")
    page.evaluate("show('instructions')")
    page.click("#start")
    page.evaluate("players.forEach((player) => { player.audio.loop = true; })")
    page.press("a")
    page.wait("!players[0].audio.paused")
    page.press("b")
    page.wait("!players[1].audio.paused && players[0].audio.paused")
    page.press("b")
    page.wait("players.every((player) => player.audio.paused)")


@pytest.mark.parametrize("query", ["?participant=again", ""])
def test_a_reload_loses_nothing(open_page, query):
    page = open_page(query)
    page.evaluate("show('instructions')")
    page.click("#start")
    answer(page, "5")
    page.wait("state.answers.length === 1")
    before = page.evaluate("state")
    # In the same tab: between two of them, Chromium takes its time to pass on what one stored.
    page.reload()
    assert page.evaluate("state") == before
    assert sections(page) == ["comparison"]
    assert page.evaluate("element('progress').textContent") == "2 of 9"
    assert page.evaluate("plan[0].id") == before["answers"][0]["id"]
    # Somebody else starts from the beginning, and so does whoever's notes are damaged.
    assert sections(open_page("?participant=else")) == ["welcome"]
    page.evaluate("localStorage.setItem(`${STORE}/of/${participant}`, '{\"answers\": [{}]}')")
    page.reload()
    assert page.evaluate("participant") == before["participant"]
    assert sections(page) == ["welcome"]


def test_participants_have_orders_and_sides_of_their_own(open_page):
    page = open_page("?participant=orders")
    names = [f"p{number}" for number in range(400)]
    plans = page.evaluate(f"{json.dumps(names)}.map(planOf)")
    again = page.evaluate(f"{json.dumps(names)}.map(planOf)")
    assert plans == again
    ids = sorted(each["id"] for each in plans[0])
    assert all(sorted(each["id"] for each in plan) == ids for plan in plans)
    assert len({tuple(each["id"] for each in plan) for plan in plans}) > 390  # of 9! orders
    firsts = collections.Counter(plan[0]["id"] for plan in plans)
    assert min(firsts[id] for id in ids) > 20  # of 44 expected
    for id in ids:  # each clip is A for half of them
        heard = [each["a"] for plan in plans for each in plan if each["id"] == id]
        assert len(set(heard)) == 2
        assert 150 < heard.count(heard[0]) < 250
