"""A picture of an ablation: a curve a variant, a panel a metric.

S: seeds, N: steps.
"""

import io
from collections.abc import Mapping

import numpy as np

from musiclm.evaluation import ablation


def draw(study: ablation.Study, outcomes: Mapping[tuple[str, int], ablation.Outcome]) -> bytes:
    """A PNG: the mean over seeds against the step, in a band from the lowest to the highest.

    A variant's curve has the steps that all its runs have.
    """
    # Not pyplot: it would look for a display and keep the figure alive.
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    size = (5 + 4 * len(study.metrics), 4.5)
    canvas = figure.Figure(figsize=size, layout="constrained", dpi=110)
    backend_agg.FigureCanvasAgg(canvas)
    panels = canvas.subplots(1, len(study.metrics), squeeze=False)[0]
    for panel, metric in zip(panels, study.metrics, strict=True):
        for variant in study.variants:
            curves = [
                outcome.curves[metric.name]
                for (name, _), outcome in outcomes.items()
                if name == variant.name and outcome.curves.get(metric.name)
            ]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if not steps:
                continue
            values_SN = np.array([[curve[step] for step in steps] for curve in curves])
            (line,) = panel.plot(steps, values_SN.mean(axis=0), marker=".", label=variant.name)
            panel.fill_between(
                steps,
                values_SN.min(axis=0),
                values_SN.max(axis=0),
                alpha=0.2,
                color=line.get_color(),
            )
        panel.set(xlabel="step", ylabel=metric.name)
        panel.set_title(metric.told(), fontsize=9)
        if panel.lines:
            panel.legend(fontsize=8)
    written = io.BytesIO()
    canvas.savefig(written, format="png")
    return written.getvalue()
