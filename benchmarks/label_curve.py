"""Dice against the number of labelled images, and how many labels a method saves, from rows of fewshot.py.

python benchmarks/fewshot.py --data_dir=FOLDER --num_labels=10,20,40,80,160,320 --draws=0 \\
    --datasets=kvasir_seg --methods=unet_plain,unet_only,real_only --test_lists=val
python benchmarks/fewshot_table.py runs/fewshot --rows=curve_cases.csv.gz
python benchmarks/label_curve.py curve_cases.csv.gz --plot=curve.png [--data_dir=FOLDER --list=val]

A method with n labels saves the factor m / n against a baseline that needs m labels for the same Dice,
m being read off the baseline's curve: never falling (isotonic regression), straight between numbers of
labels, their logarithm on the axis. Where the baseline does not come that far, the factor is more than that
of its last point.
"""

import collections
import pathlib
import statistics
import sys

import fewshot_table  # beside this file
import numpy as np
from absl import app, flags
from scipy import optimize

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

FLAGS = flags.FLAGS
flags.DEFINE_list("methods", [], "SEGMENTER: METHOD, ..., in this order; all by default.")
flags.DEFINE_integer("at", 40, "Labels at which factors are read off.")
flags.DEFINE_string("plot", "", "Where to draw the curves.")

RESAMPLES = 2000
Curve = dict[int, dict[str, float]]  # number of labels -> case -> Dice, the mean over draws


def read_curves(rows) -> dict[str, dict[str, Curve]]:
    """Data set -> 'segmenter: method' -> curve; of a case that one of its points lacks, nothing.

    Raises:
      ValueError: rows of several sizes or numbers of steps.
    """
    found = collections.defaultdict(lambda: collections.defaultdict(dict))
    settings = set()
    for (dataset, size, steps, labels), methods in fewshot_table.by_method(rows).items():
        settings.add((size, steps))
        for name, draws in methods.items():
            by_case = fewshot_table.mean_by_case(draws, sorted(draws), "dice")
            found[dataset][name][int(labels)] = by_case
    if len(settings) > 1:
        raise ValueError(f"one curve needs one size and number of steps, not {sorted(settings)}")
    for curves in found.values():
        points = [by_case for curve in curves.values() for by_case in curve.values()]
        shared = sorted(set.intersection(*map(set, points)))
        for curve in curves.values():
            for number, by_case in curve.items():
                curve[number] = {case: by_case[case] for case in shared}
    return {dataset: dict(curves) for dataset, curves in found.items()}


def saving(level: float, labels: int, numbers, baseline) -> float:
    """How many times as many labels as `labels` the baseline needs for `level`.

    Args:
      level: Dice of a method with `labels` labelled images.
      labels: their number.
      numbers: numbers of labels of the baseline, rising.
      baseline: its Dice with them.

    Returns:
      The factor; inf where the baseline never comes that far, 0 where it is there with the fewest.
    """
    rising = optimize.isotonic_regression(baseline).x
    if level > rising[-1]:
        return np.inf
    if level <= rising[0]:
        return 0.0
    above = int(np.searchsorted(rising, level))  # the first that is there
    low, high = rising[above - 1 : above + 1]
    logs = np.log(numbers[above - 1 : above + 1])
    return float(np.exp(logs[0] + (level - low) / (high - low) * (logs[1] - logs[0])) / labels)


def saving_interval(ours: Curve, theirs: Curve, labels: int, units) -> tuple[float, float, float]:
    """The factor and its 95 % interval over cases: whole clusters are drawn, both curves from the same.

    Percentiles: a factor that is inf has no mean, and no bias to correct.

    Args:
      ours: the method's curve.
      theirs: the baseline's.
      labels: where on ours.
      units: cluster of each case; '' for one on its own.
    """
    cases, numbers = sorted(ours[labels]), sorted(theirs)
    names = [units.get(case) or f"alone {case}" for case in cases]
    members = [np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)]
    level = np.array([ours[labels][case] for case in cases])
    base = np.array([[theirs[n][case] for case in cases] for n in numbers])

    def factor(chosen):
        return saving(level[chosen].mean(), labels, numbers, base[:, chosen].mean(1))

    draws = np.random.default_rng(0)
    drawn = [
        factor(
            np.concatenate([members[i] for i in draws.integers(len(members), size=len(members))])
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975), method="nearest")
    return factor(np.arange(len(cases))), float(low), float(high)


def say(factor: float, labels: int, numbers) -> str:
    """A factor in words; beyond the baseline's curve, its end."""
    if np.isinf(factor):
        return f"> {numbers[-1] / labels:.3g}"
    return f"{factor:.2g}" if factor else f"< {numbers[0] / labels:.2g}"


def table(rows, wanted=(), at: int = 40) -> str:
    """A row per data set and method: Dice by number of labels, and labels saved against every other."""
    curves, units = read_curves(rows), {row["case"]: row["unit"] for row in rows}
    numbers = sorted({n for found in curves.values() for curve in found.values() for n in curve})
    names = list(wanted) or list(dict.fromkeys(n for found in curves.values() for n in found))
    heads = ["data set", "segmenter: method", *map(str, numbers), *(f"x, {n}" for n in names[:-1])]
    text = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for dataset, found in curves.items():
        for name in (n for n in names if n in found):
            ours = found[name]
            cells = [
                f"{statistics.fmean(ours[n].values()):.3f}" if n in ours else "" for n in numbers
            ]
            for other in names[:-1]:
                if name == other or other not in found or at not in ours:
                    cells.append("")
                    continue
                theirs = found[other]
                found_here = saving_interval(ours, theirs, at, units)
                middle, low, high = (say(f, at, sorted(theirs)) for f in found_here)
                cells.append(f"{middle} ({low} to {high})")
            text.append(f"| {' | '.join((dataset, name, *cells))} |")
    return "\n".join(text)


def draw(rows, path: pathlib.Path, wanted=()) -> None:
    """A panel per data set; Dice, with intervals over cases, against labels."""
    from matplotlib.figure import Figure

    from fewshotseg import pictures
    from fewshotseg.results import statistics as stats

    curves, units = read_curves(rows), {row["case"]: row["unit"] for row in rows}
    colours = [pictures.hex_colour(c) for c in ("grey", "sky blue", "vermilion", "green")]
    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, (dataset, found) in zip(panels, curves.items(), strict=True):
        names = [n for n in (wanted or found) if n in found]
        for i, name in enumerate(names):
            numbers = sorted(found[name])
            levels, ends = [], []
            for n in numbers:
                by_case = found[name][n]
                values = np.array(list(by_case.values()))
                levels.append(values.mean())
                ends.append(stats.bootstrap_interval(values, [units[c] for c in by_case]))
            low, high = np.transpose(ends)
            at = np.array(numbers) * 1.03 ** (i - (len(names) - 1) / 2)  # side by side
            bars = np.abs(np.stack([low, high]) - levels)
            panel.errorbar(
                at, levels, bars, label=name, color=colours[i % len(colours)],
                marker="osD^"[i % 4], markersize=4, capsize=2, linewidth=1.5, elinewidth=0.8,
            )  # fmt: skip
        panel.set_xscale("log")
        shown = sorted({n for curve in found.values() for n in curve})
        panel.set_xticks(shown, list(map(str, shown)), minor=False)
        panel.minorticks_off()
        panel.set(title=dataset, xlabel="labelled images")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("Dice, mean and 95 % over cases")
    handles, names = panels[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)


def main(argv):
    if not argv[1:]:
        sys.exit("label_curve.py: give files of rows, from fewshot_table.py --rows.")
    rows = [row for arg in argv[1:] for row in fewshot_table.read_rows(pathlib.Path(arg))]
    if FLAGS.list:
        rows = fewshot_table.of_list(rows, FLAGS.data_dir, FLAGS.list)
    print(table(rows, FLAGS.methods, FLAGS.at))
    if FLAGS.plot:
        draw(rows, pathlib.Path(FLAGS.plot), FLAGS.methods)


if __name__ == "__main__":
    app.run(main)
