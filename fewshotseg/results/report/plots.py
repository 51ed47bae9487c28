"""The report's plots: log records and per-case scores in, Matplotlib figures out.

No global Matplotlib state. The colours are those of `pictures.PALETTE`, one per method. A figure is
about as wide as a telephone's screen, so that pages set several side by side or below each other.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fewshotseg import fonts, pictures

Record = Mapping[str, object]  # one line of log.jsonl

_METHOD_COLOURS = {
    "unet_plain": "#bbbbbb",
    "unet_only": "#8b6f47",
    "real_plain": pictures.hex_colour("grey"),
    "real_only": pictures.hex_colour("black"),
    "real_only_half": pictures.hex_colour("sky blue"),
    "copy_paste": pictures.hex_colour("yellow"),
    "cutmix": "#a05a2c",
    "colour_transfer": "#9acd32",
    "mixture": "#8b0000",
    "mixture_learned": pictures.hex_colour("vermilion"),
    "mixture_searched": "#e6007e",
    "mixture_chosen": "#5b3a8c",
    "mixture_random": "#708090",
    "mixture_population": "#2f4f4f",
    "separate": pictures.hex_colour("orange"),
    "joint": pictures.hex_colour("green"),
    "end2end": pictures.hex_colour("blue"),
}
_TEN = tuple(map(pictures.hex_colour, pictures.PALETTE)) + ("#a05a2c",)
_CANDIDATES = ("vermilion", "green", "blue")
# Name, title, keys; the first key is a full line, the second dashed.
PANELS = (
    ("validation_dice", "Dice on the validation images", ("validation/dice",)),
    (
        "segmenter_loss",
        "Segmenter loss: real (full), synthetic (dashed)",
        ("segmenter/real_loss", "segmenter/synthetic_loss"),
    ),
    ("outer_loss", "Outer loss, on validation images", ("outer/loss",)),
    (
        "generator_loss",
        "Loss: generator (full), discriminator (dashed)",
        ("generator/loss", "discriminator/loss"),
    ),
    ("generator_l1", "Generator's L1 distance to the real image", ("generator/l1",)),
)


def series(records: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values `[T]` of one scalar of a log; both empty if it was never measured."""
    points = [
        (record["step"], record[key])
        for record in records
        if isinstance(record.get(key), int | float) and isinstance(record.get("step"), int | float)
    ]
    steps, values = np.array(points, float).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def learning_curves(logs: Mapping[str, Sequence[Record]]) -> dict[str, Figure]:
    """Validation Dice and losses over steps by name of `PANELS`, a colour per method.

    What was never logged has no figure.
    """
    found = {}
    for name, title, keys in PANELS:
        if not any(series(log, key)[0].size for log in logs.values() for key in keys):
            continue
        figure, axes = _axes(1, 1, 4.2, 3.0)
        axis = axes[0, 0]
        for method, log in logs.items():
            for key, line in zip(keys, ("-", "--"), strict=False):
                steps, values = series(log, key)
                if steps.size:
                    label = method if line == "-" else None
                    _plot(axis, steps, values, line, colour(method), label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        if any(line.get_label()[0] != "_" for line in axis.lines):
            axis.legend(fontsize=7, frameon=False)
        found[name] = figure
    return found


def reliability(curves: Mapping[str, Mapping[str, Sequence]], title: str) -> Figure | None:
    """How often pixels are of the class, against the probability that was predicted.

    Args:
      curves: by method the `calibration` of one class in a summary.json: `pixels`, `probability`
        and `frequency` of every bin, None or NaN in empty ones.
      title: above the plot.
    """
    if not curves:
        return None
    figure, axes = _axes(1, 1, 4.2, 3.4)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for method, curve in curves.items():
        points = np.array([curve["probability"], curve["frequency"]], float)
        points = points[:, np.isfinite(points).all(axis=0)]
        axis.plot(*points, "o-", color=colour(method), markersize=3.5, linewidth=1.2, label=method)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.set_xlabel("predicted probability", fontsize=8)
    axis.set_ylabel("share of pixels that are foreground", fontsize=8)
    axis.set_title(fonts.drawable(title), fontsize=9, parse_math=False, family=fonts.names())
    axis.legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def hypergradient_norm(logs: Mapping[str, Sequence[Record]]) -> Figure | None:
    """Norm of the hypergradient over steps, logarithmic; None if it was never measured."""
    found = {m: series(log, "outer/hypergradient_norm") for m, log in logs.items()}
    found = {method: points for method, points in found.items() if points[0].size}
    if not found:
        return None
    figure, axes = _axes(1, 1, 4.2, 3.0)
    axis = axes.flat[0]
    for method, (steps, values) in found.items():
        _plot(axis, steps, values, "-", colour(method), method)
    if all((values > 0).all() for _, values in found.values()):
        axis.set_yscale("log")
    axis.set_xlabel("step", fontsize=8)
    axis.set_title("Norm of the hypergradient", fontsize=9)
    axis.legend(fontsize=7, frameon=False)
    return figure


def architecture(
    records: Sequence[Record], kernels: Sequence[str] = ("4", "6", "8")
) -> tuple[Figure, float] | None:
    """Softmax weights of the candidates over steps, one panel per cell.

    Args:
      records: of a log.
      kernels: names of the candidates.

    Returns:
      (figure, largest absolute change of any weight between the first and the last record), or None
      if the log holds no architecture weights.
    """
    sides = {side: _weights(records, f"architecture/{side}") for side in ("encoder", "decoder")}
    sides = {side: found for side, found in sides.items() if found is not None}
    if not sides:
        return None
    levels = max(weights.shape[1] for _, weights in sides.values())
    figure, axes = _axes(len(sides), levels, 1.9, 1.9, sharey=True)
    change = 0.0
    for row, (side, (steps, weights)) in enumerate(sides.items()):
        change = max(change, float(np.abs(weights[-1] - weights[0]).max()))
        for level in range(levels):
            axis = axes[row, level]
            if level >= weights.shape[1]:
                axis.set_visible(False)
                continue
            for i in range(weights.shape[2]):
                name = kernels[i] if i < len(kernels) else str(i)
                tint = _CANDIDATES[i] if i < len(_CANDIDATES) else "black"
                line = weights[:, level, i]
                _plot(axis, steps, line, "-", pictures.hex_colour(tint), f"kernel {name}")
            axis.set_title(f"{side} cell {level + 1}", fontsize=8)
    low = min(float(weights.min()) for _, weights in sides.values())
    high = max(float(weights.max()) for _, weights in sides.values())
    middle, half = (low + high) / 2, max(0.05, 0.55 * (high - low))
    axes[0, 0].set_ylim(middle - half, middle + half)
    axes[0, 0].legend(fontsize=6, frameon=False)
    return figure, change


def case_scatter(pairs: Sequence[tuple[float, float]], first: str, second: str) -> Figure | None:
    """Dice of every test case under two methods, one against the other; None without cases.

    Args:
      pairs: (Dice of `first`, Dice of `second`) per case, finite.
      first: method on the x axis.
      second: method on the y axis.
    """
    if not pairs:
        return None
    x, y = np.array(pairs, float).T
    figure, axes = _axes(2, 1, 4.2, 3.2)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    axis.plot(x, y, "o", color=colour(second), markersize=3.5, alpha=0.6, markeredgewidth=0)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set_xlabel(f"Dice, {first}", fontsize=8)
    axis.set_ylabel(f"Dice, {second}", fontsize=8)
    axis.set_title("Above the line: better", fontsize=9)
    axis = axes[1, 0]
    reach = max(0.05, float(np.abs(y - x).max()))
    axis.hist(y - x, bins=np.linspace(-reach, reach, 26), color=colour(second), alpha=0.75)
    axis.locator_params(axis="x", nbins=5)
    axis.axvline(0.0, color="#888888", linewidth=1)
    axis.set_xlabel(f"Dice difference, {second} minus {first}", fontsize=8)
    axis.set_ylabel("test cases", fontsize=8)
    axis.set_title(f"{len(pairs)} test cases", fontsize=9)
    return figure


def pair_scatter(points: Mapping[str, np.ndarray]) -> Figure:
    """Consistency of synthetic pairs against how near they are to a training image.

    Args:
      points: by method `[N, 2]`: correlation with the nearest training image, and Dice of the mask that the
        judge predicts with that of the pair.
    """
    figure, axes = _axes(1, 1, 4.2, 3.4)
    axis = axes[0, 0]
    for method, found in points.items():
        style = dict(color=colour(method), markersize=3.5, alpha=0.6, markeredgewidth=0)
        axis.plot(*found.T, "o", label=method, **style)
    axis.set(xlim=(min(0.0, *(float(p[:, 0].min()) for p in points.values())), 1.02))
    axis.set(ylim=(-0.02, 1.02))
    axis.set_xlabel("correlation with the nearest training image", fontsize=8)
    axis.set_ylabel("consistency (Dice)", fontsize=8)
    axis.set_title("Synthetic pairs", fontsize=9)
    axis.legend(fontsize=7, frameon=False)
    return figure


def estimators(rows: Sequence[Mapping]) -> bytes:
    """Cosine, time and memory against K, a line per estimator; `rows` as `diagnose.Row` has them."""
    panels = (
        ("cosine", "Cosine of the angle to the exact hypergradient"),
        ("milliseconds", "Time of one estimate (ms)"),
        ("megabytes", "Memory beyond state and data (MiB)"),
    )
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    figure, axes = _axes(1, len(panels), 4.6, 3.6)
    for axis, (key, title) in zip(axes.flat, panels, strict=True):
        for i, name in enumerate(names):
            points = sorted((row["K"], row[key]) for row in rows if row["estimator"] == name)
            style = dict(color=_TEN[i % len(_TEN)], marker="osv^D<>pX*"[i % 10])
            style["linestyle"] = "-" if i < len(_TEN) else "--"  # more lines than colours
            axis.plot(*np.transpose(points), markersize=5, linewidth=1.2, label=name, **style)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("K, inner steps")
        axis.set_xscale("log", base=2)
        steps = sorted({row["K"] for row in rows})
        axis.set_xticks(steps, [str(k) for k in steps])
        if key != "cosine":
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
    )
    return png(figure)


def colour(method: str) -> str:
    """The colour of a method or of the generator's pre-training."""
    return _METHOD_COLOURS.get(method, pictures.hex_colour("purple"))


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _weights(records, key):
    points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), list) and "step" in r]
    points = [(step, np.array(weights, float)) for step, weights in points]
    if not points or points[-1][1].ndim != 2:
        return None
    points = [point for point in points if point[1].shape == points[-1][1].shape]
    steps, weights = zip(*points, strict=True)
    return np.array(steps, float), np.stack(weights)


def _plot(axis, steps, values, line, tint, label) -> None:
    marker = "." if steps.size < 3 else None  # a line through fewer points cannot be seen
    axis.plot(steps, values, line, color=tint, linewidth=1.3, marker=marker, label=label)


def _axes(rows: int, columns: int, width: float, height: float, sharey: bool = False):
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#eeeeee", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes
