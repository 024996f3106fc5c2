"""A picture of an ablation, a panel a metric: a curve a variant, or a column if there are none.

S: seeds, N: steps.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from musiclm.evaluation import ablation


def draw(study: ablation.Study, outcomes: Mapping[tuple[str, int], ablation.Outcome]) -> bytes:
    """A PNG.

    Of runs that are evaluated once, a point each, and a line at their mean. Of others the mean over
    seeds against the step, in a band from the lowest to the highest; a variant's curve has the
    steps that all its runs have.
    """
    # Not pyplot: it would look for a display and keep the figure alive.
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    size = (5 + 4 * len(study.metrics), 4.5)
    canvas = figure.Figure(figsize=size, layout="constrained", dpi=110)
    backend_agg.FigureCanvasAgg(canvas)
    panels = canvas.subplots(1, len(study.metrics), squeeze=False)[0]
    for panel, metric in zip(panels, study.metrics, strict=True):
        curves = {
            variant.name: [
                outcome.curves[metric.name]
                for (name, _), outcome in outcomes.items()
                if name == variant.name and outcome.curves.get(metric.name)
            ]
            for variant in study.variants
        }
        panel.set(ylabel=metric.name)
        panel.set_title(metric.told(), fontsize=9)
        if all(len(curve) == 1 for of_variant in curves.values() for curve in of_variant):
            _draw_points(panel, curves)
        else:
            _draw_curves(panel, curves)
    written = io.BytesIO()
    canvas.savefig(written, format="png")
    return written.getvalue()


def _draw_points(panel, curves: Mapping[str, Sequence[ablation.Curve]]) -> None:
    for place, of_variant in enumerate(curves.values()):
        values_S = [value for curve in of_variant for value in curve.values()]
        if values_S:
            panel.plot([place] * len(values_S), values_S, "o", color="tab:blue")
            panel.hlines(np.mean(values_S), place - 0.3, place + 0.3, color="tab:blue")
    panel.set_xticks(range(len(curves)), list(curves), rotation=30, ha="right")


def _draw_curves(panel, curves: Mapping[str, Sequence[ablation.Curve]]) -> None:
    for name, of_variant in curves.items():
        steps = sorted(set.intersection(*map(set, of_variant))) if of_variant else []
        if not steps:
            continue
        values_SN = np.array([[curve[step] for step in steps] for curve in of_variant])
        (line,) = panel.plot(steps, values_SN.mean(axis=0), marker=".", label=name)
        panel.fill_between(
            steps, values_SN.min(axis=0), values_SN.max(axis=0), alpha=0.2, color=line.get_color()
        )
    panel.set(xlabel="step")
    if panel.lines:
        panel.legend(fontsize=8)
