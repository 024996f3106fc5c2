"""The report's pictures: each a Matplotlib figure of `Facts`."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipelines import manifest
from data_pipelines.corpora.facts import Facts

INK, QUIET, GRID = "#1f2933", "#6b7785", "#e4e8ec"
SPLIT_COLOURS = {"train": "#2a5d8f", "validation": "#d9a441", "test": "#b5523b"}
KIND_COLOURS = {"short": "#2a5d8f", "long": "#3f7d34", "playlist": "#8a5a9e", "tags": "#c27b2c"}
CHANNEL_COLOURS = ("#9dbbd8", "#2a5d8f", "#15324f")  # one, two, more
FAULT = "#b5523b"
WIDTH = 5.6  # inches
_STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "musiclm",
}
_MOST_BARS = 10
_TIMES = ((1, "1 s"), (3, "3 s"), (10, "10 s"), (30, "30 s"), (60, "1 min"), (180, "3 min"))
_TIMES += ((600, "10 min"), (1800, "30 min"), (3600, "1 h"), (10800, "3 h"))


def draw(facts: Facts) -> dict[str, Figure]:
    """The pictures by title; those that would be empty are left out."""
    with matplotlib.rc_context(_STYLE):
        pictures = {
            "Splits": _splits(facts),
            "Durations": _durations(facts),
            "Sample rates and channels": _formats(facts),
            "Licences": _licences(facts),
        }
        if facts.captions:
            pictures["Captions, by number of words"] = _captions(facts)
        if facts.left_out:
            pictures["Left out, by reason"] = _left_out(facts)
    return pictures


def style():
    """The context in which the figures must be saved as well."""
    return matplotlib.rc_context(_STYLE)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _splits(facts: Facts) -> Figure:
    """Hours of each split: one bar, and a label below it for each part."""
    figure, axes = _figure(1.7)
    hours = {split: sum(seconds) / 3600 for split, seconds in facts.seconds.items()}
    total = sum(hours.values())
    left = 0.0
    for place, (split, value) in enumerate(hours.items()):
        share = value / total if total else 0.0
        axes.barh(0, share, left=left, height=0.6, color=SPLIT_COLOURS[split])
        left += share
        axes.text(
            place / len(manifest.SPLITS),
            -0.55,
            f"{split}\n{len(facts.seconds[split]):,} clips\n{_hours(value)}, {share:.1%}",
            va="top",
            linespacing=1.5,
            color=SPLIT_COLOURS[split],
        )
    axes.set(xlim=(0, 1), ylim=(-2.0, 0.4))
    axes.set_axis_off()
    return figure


def _hours(hours: float) -> str:
    if hours >= 100:
        return f"{hours:,.0f} h"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else f"{seconds / 60:.3g} min"


def _durations(facts: Facts) -> Figure:
    """Histogram over the logarithm of time, splits stacked."""
    figure, axes = _figure(2.3)
    every = np.concatenate(list(facts.seconds.values()))
    every = np.maximum(every, 1e-2)
    low, high = every.min() / 1.15, every.max() * 1.15
    edges = np.geomspace(low, high, 41)
    axes.hist(
        [np.maximum(seconds, 1e-2) for seconds in facts.seconds.values()],
        bins=edges,
        stacked=True,
        color=[SPLIT_COLOURS[split] for split in facts.seconds],
    )
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = [(at, text) for at, text in _TIMES if low <= at <= high]
    if len(ticks) < 2:
        ticks = [(at, _time(at)) for at in (every.min(), every.max())][: 1 + (high / low > 1.5)]
    axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
    median = float(np.median(every))
    axes.axvline(median, color=INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"median {_time(median)}",
        (median, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, 2),
        textcoords="offset points",
        fontsize=8.5,
    )
    axes.set_ylabel("clips")
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    return figure


def _formats(facts: Facts) -> Figure:
    """Clips by sample rate, stacked by channels."""
    rates = sorted({rate for rate, _ in facts.formats})
    parts = {
        name: [
            sum(count for (r, c), count in facts.formats.items() if r == rate and is_part(c))
            for rate in rates
        ]
        for name, is_part in (
            ("mono", lambda channels: channels == 1),
            ("stereo", lambda channels: channels == 2),
            ("more", lambda channels: channels > 2),
        )
    }
    colours = dict(zip(parts, CHANNEL_COLOURS, strict=True))
    parts = {name: counts for name, counts in parts.items() if any(counts)}
    return _bars([f"{rate / 1000:g} kHz" for rate in rates], parts, colours, legend=True)


def _licences(facts: Facts) -> Figure:
    names = {name or "not told": count for name, count in facts.licences.items()}
    first = dict(list(names.items())[:_MOST_BARS])
    if rest := sum(names.values()) - sum(first.values()):
        first[f"{len(names) - len(first)} others"] = rest
    return _bars(list(first), {"clips": list(first.values())}, {"clips": "#3f7d34"})


def _left_out(facts: Facts) -> Figure:
    counts = {reason: len(names) for reason, names in list(facts.left_out.items())[:_MOST_BARS]}
    return _bars(list(counts), {"clips": list(counts.values())}, {"clips": FAULT})


def _bars(
    labels: list[str],
    parts: dict[str, list[int]],
    colours: dict[str, str],
    *,
    legend: bool = False,
) -> Figure:
    """Horizontal bars with their label above and their sum behind; parts are stacked."""
    figure, axes = _figure(0.55 + 0.48 * len(labels))
    places = np.arange(len(labels))
    left = np.zeros(len(labels))
    for name, counts in parts.items():
        axes.barh(places, counts, left=left, height=0.42, color=colours[name], label=name)
        left += counts
    for place, label, total in zip(places, labels, left, strict=True):
        text = label if len(label) <= 70 else label[:69] + "…"
        axes.text(0, place - 0.3, text, va="bottom", fontsize=8.5)
        axes.annotate(
            f"{total:,.0f}",
            (total, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=QUIET,
        )
    axes.set(xlim=(0, left.max() * 1.12), ylim=(len(labels) - 0.6, -0.8), yticks=[], xticks=[])
    axes.spines[["bottom", "left"]].set_visible(False)
    if legend:
        figure.legend(loc="outside upper right", ncols=len(parts), frameon=False, fontsize=8.5)
    return figure


def _captions(facts: Facts) -> Figure:
    """A histogram of lengths for each kind, one below the other over one scale."""
    kinds = list(facts.captions)
    figure = Figure(figsize=(WIDTH, 0.5 + 0.9 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    longest = max(max(lengths) for lengths in facts.captions.values())
    step = max(1, longest // 60)
    edges = np.arange(0, longest + 1 + step, step) - 0.5  # the last bar reaches the longest
    for axes, kind in zip(rows, kinds, strict=True):
        lengths = facts.captions[kind]
        axes.hist(
            list(lengths), bins=edges, weights=list(lengths.values()), color=KIND_COLOURS[kind]
        )
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_title(f"{kind}: {sum(lengths.values()):,}", loc="left", fontsize=9.5)
    rows[-1].set_xlabel("words")
    return figure
