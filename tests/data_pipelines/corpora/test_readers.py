"""Each reader on small tables in the form in which they are published, and on spoilt ones."""

import csv

import pytest

from data_pipelines.corpora import corpus


def _words(clip):
    return {(caption.kind, caption.text) for caption in clip.captions}


def _reasons(made):
    return {one.name: one.reason for one in made.left_out}


# MusicCaps ---------------------------------------------------------------------------------------

MUSICCAPS = """\
ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,\
is_audioset_eval
-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck,/m/04rlf","['low quality', ""80's sound""]",\
"A slow tune, ""soft"" and sad.",4,False,True
_0vPFx-wRRI,30,40,"/m/025_jnm,/m/04rlf","['male vocal']",Somebody sings.,7,False,False
08N8iyIJlWw,0,10,/m/04rlf,[],Not on disk.,3,True,False
zzLongClip_,60,70,/m/04rlf,[],Never cut.,3,True,False
"""


def test_musiccaps(make, sound, tmp_path):
    table = tmp_path / "musiccaps-public.csv"
    table.write_text(MUSICCAPS)
    sound(tmp_path / "audio" / "[-0Gj8-vB1q4]-[30-40].wav", seconds=10)
    sound(tmp_path / "audio" / "deeper" / "_0vPFx-wRRI.flac", seconds=10.02)
    sound(tmp_path / "audio" / "zzLongClip_.wav", seconds=20)
    clips, made = make("musiccaps", "--csv", table, "--audio", tmp_path / "audio")
    first, second = clips["[-0Gj8-vB1q4]-[30-40].wav"], clips["_0vPFx-wRRI.flac"]
    assert (first.split, second.split) == ("test", "train")
    assert _words(first) == {
        ("long", 'A slow tune, "soft" and sad.'),
        ("tags", "low quality, 80's sound"),
    }
    assert first.attributes["audioset_labels"] == ["/m/0140xf", "/m/02cjck", "/m/04rlf"]
    assert (first.attributes["start_s"], first.attributes["end_s"]) == (30.0, 40.0)
    assert (second.licence, second.seconds) == ("", pytest.approx(10.02))
    assert _reasons(made) == {
        "08N8iyIJlWw": corpus.MISSING,
        "zzLongClip_": "longer than its segment: cut it to start and end",
    }


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("start_s,", "start,", "lacks the columns start_s"),
        ("['male vocal']", "male vocal", "'male vocal' is no list"),
        (",30,40,", ",thirty,40,", "'thirty' is no number"),
        (",3,True,", ",3,", "a row has 8 cells, not 9 .it begins with '08N8iyIJlWw'"),
        ("ytid", "\xff", "lacks the columns ytid"),
    ],
)
def test_spoilt_musiccaps(make, sound, tmp_path, old, new, told):
    table = tmp_path / "musiccaps-public.csv"
    table.write_text(MUSICCAPS.replace(old, new))
    sound(tmp_path / "audio" / "_0vPFx-wRRI.wav")
    with pytest.raises(corpus.CorpusError, match=told):
        make("musiccaps", "--csv", table, "--audio", tmp_path / "audio")
    assert not (tmp_path / "out").exists()


# AudioSet ----------------------------------------------------------------------------------------

SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
--aE2O5G5WE, 0.000, 10.000, "/m/04rlf,/m/05zppz"
"""
EVALUATION = SEGMENTS.replace("--", "AB")
LABELS = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
137,/m/04rlf,"Music"
500,/t/dd00088,"Gush"
"""


@pytest.fixture
def audioset(sound, tmp_path):
    (tmp_path / "balanced_train_segments.csv").write_text(SEGMENTS)
    (tmp_path / "eval_segments.csv").write_text(EVALUATION)
    (tmp_path / "labels.csv").write_text(LABELS)
    for name in ("Y--PJHxphWEs", "--aE2O5G5WE_0_10", "ABaE2O5G5WE"):
        sound(tmp_path / "audio" / f"{name}.wav", seconds=10)
    return [
        *("--segments", tmp_path / "balanced_train_segments.csv", tmp_path / "eval_segments.csv"),
        *("--labels", tmp_path / "labels.csv", "--audio", tmp_path / "audio"),
    ]


def test_audioset(make, audioset):
    clips, made = make("audioset", *audioset, "--licence", "as on YouTube")
    assert set(clips) == {"Y--PJHxphWEs.wav", "--aE2O5G5WE_0_10.wav", "ABaE2O5G5WE.wav"}
    assert clips["ABaE2O5G5WE.wav"].split == "test"
    assert clips["Y--PJHxphWEs.wav"].split == "train"
    assert _words(clips["Y--PJHxphWEs.wav"]) == {("tags", "Speech, Gush")}
    assert clips["Y--PJHxphWEs.wav"].attributes["start_s"] == 30.0
    assert {clip.licence for clip in clips.values()} == {"as on YouTube"}
    assert _reasons(made) == {"ABPJHxphWEs": corpus.MISSING}


def test_music_of_audioset(make, audioset):
    clips, made = make("audioset", *audioset, "--music")
    assert set(clips) == {"--aE2O5G5WE_0_10.wav", "ABaE2O5G5WE.wav"}
    assert not made.left_out


def test_audioset_with_other_labels(make, audioset, tmp_path):
    (tmp_path / "labels.csv").write_text(LABELS.replace("/t/dd00088", "/t/dd00089"))
    with pytest.raises(corpus.CorpusError, match="label /t/dd00088, which --labels does not name"):
        make("audioset", *audioset)
    (tmp_path / "eval_segments.csv").write_text("track_id,title\n1,Food\n")
    with pytest.raises(corpus.CorpusError, match=r"eval_segments\.csv has a line of 2 cells"):
        make("audioset", *audioset)


# FMA ---------------------------------------------------------------------------------------------

FMA_COLUMNS = {
    ("album", "title"): "AWOL",
    ("artist", "name"): "AWOL",
    ("set", "split"): "training",
    ("set", "subset"): "small",
    ("track", "genre_top"): "Hip-Hop",
    ("track", "genres"): "[21]",
    ("track", "information"): "",
    ("track", "license"): "Attribution-NonCommercial-ShareAlike 3.0 International",
    ("track", "tags"): "[]",
    ("track", "title"): "Food",
}


def _write_fma(folder, *tracks):
    """tracks.csv with its head of three lines, and genres.csv."""
    folder.mkdir(exist_ok=True)
    (folder / "genres.csv").write_text(
        "genre_id,#tracks,parent,title,top_level\n21,12201,0,Hip-Hop,21\n76,1868,10,Experimental "
        "Pop,10\n"
    )
    with (folder / "tracks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", *(group for group, _ in FMA_COLUMNS)])
        writer.writerow(["", *(name for _, name in FMA_COLUMNS)])
        writer.writerow(["track_id", *("" for _ in FMA_COLUMNS)])
        for number, changes in tracks:
            writer.writerow([number, *(FMA_COLUMNS | changes).values()])


def test_fma(make, sound, tmp_path):
    _write_fma(
        tmp_path / "fma_metadata",
        (2, {}),
        (
            10_005,
            {
                ("set", "split"): "validation",
                ("set", "subset"): "large",
                ("track", "genres"): "[21, 76]",
                ("track", "information"): "<p>Recorded &amp; mixed<br/>\nin a barn.</p>",
                ("track", "tags"): "['lo-fi', 'barn']",
                ("track", "license"): "",
            },
        ),
        (155_320, {("set", "split"): "test"}),
    )
    sound(tmp_path / "fma_large" / "000" / "000002.mp3", rate=44_100, channels=2)
    sound(tmp_path / "fma_large" / "010" / "010005.mp3", rate=44_100)
    arguments = ["--metadata", tmp_path / "fma_metadata", "--audio", tmp_path / "fma_large"]
    clips, made = make("fma", *arguments)
    food, barn = clips["000002.mp3"], clips["010005.mp3"]
    assert (food.split, barn.split) == ("train", "validation")
    assert (food.channels, food.sample_rate) == (2, 44_100)
    assert food.seconds == pytest.approx(1.0, abs=0.1)
    assert food.licence == "Attribution-NonCommercial-ShareAlike 3.0 International"
    assert barn.licence == ""
    assert _words(food) == {("short", "Food"), ("tags", "Hip-Hop")}
    assert _words(barn) == {
        ("short", "Food"),
        ("long", "Recorded & mixed in a barn."),
        ("tags", "Hip-Hop, Experimental Pop"),
        ("tags", "lo-fi, barn"),
    }
    assert food.attributes["artist"] == "AWOL"
    assert _reasons(made) == {"155/155320.mp3": corpus.MISSING}
    clips, _ = make("fma", *arguments, "--subset", "medium")
    assert set(clips) == {"000002.mp3"}


def test_spoilt_fma(make, sound, tmp_path):
    folder = tmp_path / "fma_metadata"
    sound(tmp_path / "fma" / "000" / "000002.mp3", rate=44_100)
    arguments = ["--metadata", folder, "--audio", tmp_path / "fma"]
    with pytest.raises(corpus.CorpusError, match=r"cannot read .*genres\.csv"):
        make("fma", *arguments)
    _write_fma(folder, (2, {("set", "split"): "dev"}))
    with pytest.raises(corpus.CorpusError, match="track 2 is of the split 'dev'"):
        make("fma", *arguments)
    lines = (folder / "tracks.csv").read_text().splitlines()
    (folder / "tracks.csv").write_text("\n".join(lines[1:]))
    with pytest.raises(corpus.CorpusError, match="lacks the columns set/split, set/subset"):
        make("fma", *arguments)


# MTG-Jamendo -------------------------------------------------------------------------------------

HEAD = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
TRACKS = [
    "track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t124.6\tgenre---punkrock\n",
    "track_0000215\tartist_000014\talbum_000031\t15/215.mp3\t151.4\tgenre---metal"
    "\tinstrument---drums\tmood/theme---dark\n",
    "track_0000216\tartist_000014\talbum_000031\t16/216.mp3\t234.9\tgenre---metal\n",
    "track_0000382\tartist_000020\talbum_000046\t82/382.mp3\t211.1\tgenre---rock\n",
]
LICENCES = """\
14/214.mp3
Gone by Both from Jamendo: http://www.jamendo.com/track/214
Available under a Creative Commons Attribution-NonCommercial-ShareAlike license: \
http://creativecommons.org/licenses/by-nc-sa/3.0/

15/215.mp3
Here by Both from Jamendo: http://www.jamendo.com/track/215
Available under a Creative Commons Attribution license: \
http://creativecommons.org/licenses/by/2.0/fr/
"""


@pytest.fixture
def jamendo(sound, tmp_path):
    (tmp_path / "autotagging.tsv").write_text(HEAD + "".join(TRACKS))
    (tmp_path / "split-0").mkdir()
    for name, part in (("train", TRACKS[:1]), ("validation", TRACKS[1:2]), ("test", TRACKS[2:3])):
        (tmp_path / "split-0" / f"autotagging-{name}.tsv").write_text(HEAD + "".join(part))
    (tmp_path / "audio_licenses.txt").write_text(LICENCES)
    sound(tmp_path / "audio" / "14" / "214.mp3", rate=44_100)
    sound(tmp_path / "audio" / "15" / "215.low.mp3", rate=44_100)
    return ["--tsv", tmp_path / "autotagging.tsv", "--audio", tmp_path / "audio"]


def test_mtg_jamendo(make, jamendo, tmp_path):
    clips, made = make("mtg_jamendo", *jamendo, "--licences", tmp_path / "audio_licenses.txt")
    punk, metal = clips["214.mp3"], clips["215.low.mp3"]
    assert punk.split == metal.split == "train"  # of one artist
    assert _words(metal) == {("tags", "metal, drums, dark")}
    assert metal.attributes["tags"] == {
        "genre": ["metal"],
        "instrument": ["drums"],
        "mood/theme": ["dark"],
    }
    assert punk.licence == "CC-BY-NC-SA-3.0"
    assert metal.licence.endswith("http://creativecommons.org/licenses/by/2.0/fr/")
    assert _reasons(made) == {"16/216.mp3": corpus.MISSING, "82/382.mp3": corpus.MISSING}


def test_published_splits_of_mtg_jamendo(make, jamendo, tmp_path):
    clips, made = make("mtg_jamendo", *jamendo, "--splits", tmp_path / "split-0")
    assert {name: clip.split for name, clip in clips.items()} == {
        "214.mp3": "train",
        "215.low.mp3": "validation",
    }
    assert _reasons(made) == {"16/216.mp3": corpus.MISSING}  # 382 is in none of the splits
    with pytest.raises(corpus.CorpusError, match=r"cannot read .*split-1/autotagging-train\.tsv"):
        make("mtg_jamendo", *jamendo, "--splits", tmp_path / "split-1")


def test_spoilt_mtg_jamendo(make, jamendo, tmp_path):
    (tmp_path / "autotagging.tsv").write_text(HEAD + TRACKS[0] + "track_0000215\tartist\n")
    with pytest.raises(corpus.CorpusError, match="track track_0000215 has 2 cells, fewer than 6"):
        make("mtg_jamendo", *jamendo)
    (tmp_path / "autotagging.tsv").write_text(HEAD + TRACKS[0])
    for spoilt in (b"\xff\xfe", b"14/214.mp3"):
        (tmp_path / "audio_licenses.txt").write_bytes(spoilt)
        with pytest.raises(corpus.CorpusError, match=r"cannot read .*audio_licenses\.txt"):
            make("mtg_jamendo", *jamendo, "--licences", tmp_path / "audio_licenses.txt")


# MagnaTagATune -----------------------------------------------------------------------------------

ANNOTATIONS = """\
"clip_id"\t"no voice"\t"singer"\t"duet"\t"plucking"\t"mp3_path"
"2"\t"0"\t"1"\t"0"\t"1"\t"f/bach-01-bwv54-30-59.mp3"
"6"\t"0"\t"0"\t"0"\t"0"\t"c/bach-01-bwv54-146-175.mp3"
"10"\t"1"\t"0"\t"0"\t"0"\t"0/nobody-01-nothing-0-29.mp3"
"11"\t"1"\t"0"\t"0"\t"0"\t"b/nobody-01-nothing-30-59.mp3"
"""
CLIP_INFO = """\
"clip_id"\t"track_number"\t"title"\t"artist"\t"album"\t"url"\t"segmentStart"\t"segmentEnd"\
\t"original_url"\t"mp3_path"
"2"\t"1"\t"BWV54 - I Aria"\t"American Bach Soloists"\t"Cantatas"\t"http://x"\t"30"\t"59"\t"http://y"\
\t"f/bach-01-bwv54-30-59.mp3"
"""


def test_magnatagatune(make, sound, tmp_path):
    (tmp_path / "annotations_final.csv").write_text(ANNOTATIONS)
    (tmp_path / "clip_info_final.csv").write_text(CLIP_INFO)
    for place in ("f/bach-01-bwv54-30-59", "c/bach-01-bwv54-146-175", "0/nobody-01-nothing-0-29"):
        sound(tmp_path / "mtat" / f"{place}.mp3", rate=16_000)
    arguments = [
        *("--annotations", tmp_path / "annotations_final.csv"),
        *("--info", tmp_path / "clip_info_final.csv", "--audio", tmp_path / "mtat"),
    ]
    clips, made = make("magnatagatune", *arguments, "--licence", "CC-BY-NC-SA-1.0")
    bach = clips["bach-01-bwv54-30-59.mp3"]
    assert _words(bach) == {("short", "BWV54 - I Aria"), ("tags", "singer, plucking")}
    assert bach.attributes["artist"] == "American Bach Soloists"
    assert clips["bach-01-bwv54-146-175.mp3"].captions == ()
    assert [clip.split for clip in clips.values()] == ["test", "validation", "train"]
    assert bach.licence == "CC-BY-NC-SA-1.0"
    assert _reasons(made) == {"b/nobody-01-nothing-30-59.mp3": corpus.MISSING}
    (tmp_path / "annotations_final.csv").write_text(ANNOTATIONS.replace("f/", "mp3s/"))
    with pytest.raises(corpus.CorpusError, match="lies in none of the folders 0 to f"):
        make("magnatagatune", *arguments)
