"""Curves -> inline SVG: text stays text, colours are the page's own (so they follow dark mode), the bytes are always the same.

No word of the user's enters a chart: names of classes stand in the page beside it, where they are escaped.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.rows import Floats

# stand-ins that matplotlib draws with, and what the page puts in their place
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = [f"#0400{k:02x}" for k in range(6)]
_CSS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
_CSS |= {color: f"var(--c{k})" for k, color in enumerate(SERIES)}
POINTS = 300  # of a curve at most: a long run's page stays light

Curve = tuple[Floats, Floats]


def loss_chart(train: Curve, val: Curve) -> str:
    """Loss against step: training as a line, validation with dots."""
    figure, axes = _figure("step", "loss")
    axes.plot(*_thin(*train), color=SERIES[0], linewidth=1.4)
    axes.plot(*_thin(*val), color=SERIES[1], linewidth=1.4, marker="o", markersize=3.5)
    return _svg(figure, "loss", "Loss of training and validation against the optimiser step")


def score_chart(value: Curve, low: Curve, high: Curve, best: int | None, name: str) -> str:
    """A validation score against step with its 95 % band; the step that was kept is circled."""
    figure, axes = _figure("step", name)
    if len(value[0]) == 1:  # a band of one point has no width
        axes.vlines(value[0], low[1], high[1], color=SERIES[1], linewidth=1.4)
    axes.fill_between(value[0], low[1], high[1], color=SERIES[1], alpha=0.18, linewidth=0)
    axes.plot(*value, color=SERIES[1], linewidth=1.4, marker="o", markersize=3.5)
    if best is not None:
        axes.plot(
            value[0][best],
            value[1][best],
            "o",
            markersize=10,
            fillstyle="none",
            color=INK,
            markeredgewidth=1.3,
        )
    return _svg(figure, "score", f"Validation {name} against the optimiser step, with its 95 % band")


def roc_chart(curves: list[Curve], points: list[tuple[float, float] | None]) -> str:
    """True against false positive rate; the operating point of each curve is a dot."""
    figure, axes = _figure("1 – specificity", "sensitivity", size=(4.4, 4.0))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for k in reversed(range(len(curves))):  # the first lies on top
        axes.plot(*curves[k], color=SERIES[k], linewidth=1.8 if k == 0 else 1.2)
        if (point := points[k]) is not None:
            axes.plot(*point, "o", color=SERIES[k], markersize=7)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return _svg(figure, "roc", "ROC curve: sensitivity against 1 minus specificity")


def precision_recall_chart(curves: list[Curve], points: list[tuple[float, float] | None], share: float | None) -> str:
    """Precision against recall; the operating point of each curve is a dot. `share` of positive cases: what chance gives."""
    figure, axes = _figure("sensitivity (recall)", "PPV (precision)", size=(4.4, 4.0))
    if share is not None:
        axes.axhline(share, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for k in reversed(range(len(curves))):
        axes.plot(*curves[k], color=SERIES[k], linewidth=1.8 if k == 0 else 1.2)
        if (point := points[k]) is not None:
            axes.plot(*point, "o", color=SERIES[k], markersize=7)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return _svg(figure, "precision-recall", "Precision against recall")


def calibration_chart(bins: dict[str, Floats], curve: dict[str, Floats], series: int) -> str:
    """Share of positive cases against score: bins with their intervals, the smooth curve with its band, the diagonal.

    `bins`: mean, rate, rate_low, rate_high; `curve`: score, rate, low, high; all in [0, 1].
    """
    figure, axes = _figure("score", "share of positive cases", size=(4.4, 4.0))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    color = SERIES[series]
    axes.fill_between(curve["score"], curve["low"], curve["high"], color=color, alpha=0.18, linewidth=0)
    axes.plot(curve["score"], curve["rate"], color=color, linewidth=1.6)
    axes.vlines(bins["mean"], bins["rate_low"], bins["rate_high"], color=INK, linewidth=1.1)
    axes.plot(bins["mean"], bins["rate"], "o", color=INK, markersize=4.5)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return _svg(figure, "calibration", "Calibration: share of positive cases against score")


def histogram_chart(score: Floats, threshold: float | None, name: str) -> str:
    """How many cases have which score, in twenty bins of [0, 1]."""
    figure, axes = _figure(name, "cases")
    count, edge = np.histogram(score, bins=20, range=(0, 1))
    axes.bar(edge[:-1], count, width=0.046, align="edge", color=SERIES[0])
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlim(-0.05, 1.05)
    return _svg(figure, "histogram", f"Histogram of the {name}")


def shape_chart(curves: list[Curve]) -> str:
    """Shares of newborns against robust standard deviations: training, here, here after the correction."""
    figure, axes = _figure("robust sd from the median of training", "share of newborns")
    for k, (z, share) in enumerate(curves):
        axes.plot(z, share, color=SERIES[k], linewidth=1.8 if k == 0 else 1.3)
    axes.set_ylim(bottom=0)
    return _svg(figure, "shape", "Distribution of a channel in training and here")


def distribution_chart(edges: Floats, shares: list[Floats], concentration: bool) -> str:
    """Histograms on a logarithmic scale: `edges` (b + 1,) > 0, `shares` (b,) each."""
    figure, axes = _figure("umol/L" if concentration else "ratio", "share of newborns")
    for k in reversed(range(len(shares))):
        axes.stairs(shares[k], edges, color=SERIES[k], linewidth=1.4)
    axes.set_xscale("log")
    axes.minorticks_off()
    seen = np.flatnonzero(np.sum(shares, axis=0))
    axes.set_xlim(edges[seen[0]], edges[seen[-1] + 1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _svg(figure, "distribution", "Distribution of a channel by laboratory")


def control_chart(z: Floats, failed: NDArray[np.bool_]) -> str:
    """Levey and Jennings: z of each control in time order, lines at 0, 2 and 3 standard deviations; failed plates are ringed.

    Source: Levey & Jennings 1950, Am J Clin Pathol 20:1059-1066.
    """
    figure, axes = _figure("plate, in time order", "sd from the assigned mean", size=(4.4, 2.6))
    for at, style in ((0, "-"), (-2, (0, (1, 3))), (2, (0, (1, 3))), (-3, (0, (4, 3))), (3, (0, (4, 3)))):
        axes.axhline(at, color=INK if abs(at) == 3 else MUTED, linewidth=0.9, linestyle=style)
    x = np.arange(1, len(z) + 1)
    shown = np.clip(z, -6, 6)  # what lies beyond stands on the edge
    axes.plot(x, shown, color=SERIES[0], linewidth=1.0, marker="o", markersize=3)
    axes.plot(x[failed], shown[failed], "o", markersize=9, fillstyle="none", color=INK, markeredgewidth=1.2)
    axes.set(ylim=(-6.3, 6.3), yticks=[-6, -3, 0, 3, 6])
    axes.locator_params(axis="x", integer=True)
    return _svg(figure, "control", "Levey-Jennings chart: controls by plate, in standard deviations from the assigned mean")


def _figure(x: str, y: str, size: tuple[float, float] = (4.4, 2.9)) -> tuple[Any, Any]:
    """An empty chart with quiet axes. Sized so that text reads at 10 px on a phone, where a point is a pixel."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own style
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=0, pad=5)
    axes.locator_params(nbins=5)
    if x == "step":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, name: str, title: str) -> str:
    """`figure` as an <svg> element without ids of its own, dates, sizes or links."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name})
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]),
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{title}">',
        text,
        count=1,
    )
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"<!--.*?-->|\n\s*", lambda m: "\n" if m[0][0] == "\n" else "", text, flags=re.S)
    return re.sub("|".join(_CSS), lambda m: _CSS[m[0]], text).strip()


def _thin(x: Floats, y: Floats) -> Curve:
    """At most POINTS points: the means of neighbours."""
    if len(x) <= POINTS:
        return x, y
    parts = [np.array_split(values, POINTS) for values in (x, y)]
    return _means(parts[0]), _means(parts[1])


def _means(parts: list[NDArray[np.float64]]) -> Floats:
    return np.array([part.mean() for part in parts])
