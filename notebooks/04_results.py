# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Results: what pays, and what does not
#
# The tables of `docs/results.md` and `docs/results_before.md` come from rows of files in
# `benchmarks/results/`. This notebook reads those rows, as they are committed, and draws from them:
# learning curves, differences of methods over the same cases with their intervals, and what the
# searches have found. It trains nothing; half a minute.
#
# **Two spreads, kept apart.** *Over cases*: how far the score of one trained model would move with
# other test images. *Over draws*: how far it moves when the labelled images, or the training, are drawn
# again. Only the second can support a claim about a method.

# %%
# Installs the package where it is missing; the JAX that is there stays. In Colab, set SOURCE to
# "git+https://..." with the address of the repository; inside a clone, leave it.
import importlib.util
import pathlib
import subprocess
import sys

SOURCE = ".."
if importlib.util.find_spec("fewshotseg") is None:
    if SOURCE == ".." and not pathlib.Path("../setup.cfg").is_file():
        raise SystemExit("Set SOURCE in this cell to the repository's address, git+https://...")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", SOURCE])

# %%
import collections
import csv
import gzip
import math

import matplotlib.pyplot as plt
import numpy as np

import fewshotseg
from fewshotseg.results import statistics

ROOT = pathlib.Path(fewshotseg.__file__).parents[1]
if not (
    ROOT / "benchmarks" / "results"
).is_dir():  # installed: the rows are in the repository alone
    ROOT = pathlib.Path("repository")
    if not ROOT.exists():
        subprocess.check_call(["git", "clone", "--depth=1", SOURCE.removeprefix("git+"), str(ROOT)])


def read(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


found = sorted((ROOT / "benchmarks" / "results").glob("*.csv*"))
TABLES = {path.name.partition(".")[0]: read(path) for path in found}
for name, rows in TABLES.items():
    print(f"{name:24}{len(rows):6} rows: {', '.join(list(rows[0])[:8])}, ...")

# %% [markdown]
# ## One model per seed
#
# `fewshot.csv` has a row per run: 40 labelled images of four public data sets, three seeds (which divide
# the same 40 into 32 and 8), four methods. **These runs were made before the optimiser was mended** (see
# `docs/results_before.md`): believe the comparisons within them, not the levels.

# %%
runs = TABLES["fewshot"]
datasets = sorted({row["dataset"] for row in runs})
METHODS = ("real_only", "separate", "joint", "end2end")
score = {(r["dataset"], r["method"], r["seed"]): float(r["dice"]) for r in runs}
seeds = sorted({row["seed"] for row in runs})

figure, axes = plt.subplots(1, 2, figsize=(11, 3.2))
for k, method in enumerate(METHODS):
    for i, dataset in enumerate(datasets):
        values = [score[dataset, method, seed] for seed in seeds]
        at = i + 0.18 * (k - 1.5)
        axes[0].plot([at] * len(values), values, ".", color=f"C{k}")
        axes[0].plot(at, np.mean(values), "_", markersize=14, color=f"C{k}")
        if method == "real_only":
            continue
        minus = [score[dataset, method, s] - score[dataset, "real_only", s] for s in seeds]
        spread = statistics.summarise_seeds(minus)
        low, high = spread["ci95"]
        axes[1].plot([at, at], [low, high], color=f"C{k}")
        axes[1].plot(at, spread["mean"], "o", color=f"C{k}", label=method if i == 0 else None)
for axis, title in zip(
    axes, ("Dice, a dot per seed", "minus real_only, 95 % over seeds"), strict=True
):
    axis.set_xticks(range(len(datasets)), datasets)
    axis.set_title(title)
axes[0].legend(
    handles=[plt.Line2D([], [], color=f"C{k}", label=m) for k, m in enumerate(METHODS)],
    fontsize=8,
)
axes[1].axhline(0.0, color="grey", linewidth=0.8)
figure.tight_layout()
plt.show()

# %% [markdown]
# An interval that contains 0 means: three seeds cannot tell it from nothing. Three are few, and Student's
# t says so by the width of the bars. How far other labelled images would move it is not in these rows.
#
# ## Longer training
#
# The same data set, breast ultrasound, after 400 and 3,200 steps. Synthetic pairs help a short training
# more than a long one: what they buy there is speed.

# %%
curves = collections.defaultdict(dict)
for row in [*runs, *TABLES["fewshot_busi_long"]]:
    if row["dataset"] == "busi":
        curves[row["method"]].setdefault(int(row["steps"]), []).append(float(row["dice"]))
figure, axis = plt.subplots(figsize=(5.5, 3.2))
for k, (method, by_steps) in enumerate(curves.items()):
    steps = sorted(by_steps)
    means = [np.mean(by_steps[s]) for s in steps]
    deviations = [np.std(by_steps[s], ddof=1) for s in steps]
    shifted = np.array(steps) * 1.04 ** (k - 1.5)
    axis.errorbar(shifted, means, deviations, marker="o", capsize=2, label=method)
axis.set_xscale("log")
axis.set_xticks([400, 3200, 19200], ["400", "3,200", "19,200"])
axis.minorticks_off()
axis.set_xlabel("training steps")
axis.set_ylabel("Dice on 100 test images")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Case by case
#
# Files that end in `_cases` have a row per test image, so methods are compared **on the same images**.
# A difference of means hides that most images hardly change and a few change much; sorted, one sees
# both.

# %%
Cases = collections.namedtuple("Cases", "dice units")


def by_setting(rows):
    """Setting -> method -> draw -> Dice by case; and the look-alikes that count as one."""
    settings = collections.defaultdict(lambda: collections.defaultdict(dict))
    units = collections.defaultdict(dict)
    for row in rows:
        if row.get("class"):  # of several classes, the row of their mean counts
            continue
        parts = ("dataset", "experiment", "size", "steps", "labels")
        setting = ", ".join(row[p] for p in parts if row.get(p))
        method = f"{row['segmenter']}: {row['method']}" if "segmenter" in row else row["method"]
        draw = row.get("draw") or row.get("seed")
        dice = float(row["dice"]) if row["dice"] not in ("", "nan") else math.nan
        settings[setting][method].setdefault(draw, {})[row["case"]] = dice
        units[setting][row["case"]] = row.get("unit", "")
    return {s: Cases(dict(methods), units[s]) for s, methods in settings.items()}


SETTINGS = {
    (table, setting): cases
    for table, rows in TABLES.items()
    if table.endswith("_cases")
    for setting, cases in by_setting(rows).items()
}
columns = min(3, len(SETTINGS))
lines = -(-len(SETTINGS) // columns)
figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3 * lines), squeeze=False)
for axis in axes.flat[len(SETTINGS) :]:
    axis.axis("off")
for axis, ((table, setting), cases) in zip(axes.flat, SETTINGS.items(), strict=False):
    for method, draws in cases.dice.items():
        values = np.sort([v for of in draws.values() for v in of.values() if math.isfinite(v)])
        label = f"{method} ({values.mean():.3f})"
        axis.plot(np.linspace(0, 100, len(values)), values, label=label)
    axis.set_title(f"{table}\n{setting}", fontsize=9)
    axis.set_xlabel("% of cases, worst first")
    axis.legend(fontsize=7)
axes[0, 0].set_ylabel("Dice")
figure.tight_layout()
plt.show()

# %% [markdown]
# **Paired differences.** Every method against the plain baseline of its table: the mean over the same
# cases, its 95 % bootstrap interval, and the p value of the rank test after Holm's correction for all
# comparisons of one table.


# %%
def average_over_draws(draws, wanted):
    cases = set.intersection(*(set(draws[d]) for d in wanted))
    return {case: float(np.mean([draws[d][case] for d in wanted])) for case in sorted(cases)}


def compare(cases, method, baseline):
    """Over the cases, averaged over the draws that both have; and over those draws."""
    ours, theirs = cases.dice[method], cases.dice[baseline]
    wanted = sorted(set(ours) & set(theirs))
    pair = [average_over_draws(draws, wanted) for draws in (ours, theirs)]
    units = {c: f"cluster {u}" if u else "" for c, u in cases.units.items()}
    by_draw = []
    for draw in wanted:
        shared, _ = statistics.common_cases([ours[draw], theirs[draw]])
        by_draw.append(np.mean([ours[draw][c] - theirs[draw][c] for c in shared]))
    return statistics.paired_difference(*pair, units), statistics.summarise_seeds(by_draw)


BASELINES = ("real_plain", "unet_plain", "real_only")  # the plainest that a table has
rows = []
for (table, setting), cases in SETTINGS.items():
    plain = [m for b in BASELINES for m in cases.dice if m.split(": ")[-1] == b]
    others = [m for m in cases.dice if m != plain[0]]
    results = [compare(cases, method, plain[0]) for method in others]
    adjusted = statistics.holm([over_cases["p_wilcoxon"] for over_cases, _ in results])
    rows += [
        (table, setting, method, plain[0], *result, p)
        for method, result, p in zip(others, results, adjusted, strict=True)
    ]
print(f"{'':72}{'over cases':>26}   {'over draws':>18}{'p (Holm)':>10}")
shown = ""
for table, setting, method, baseline, over_cases, over_draws, p in rows:
    if table != shown:
        print(shown := table)
    low, high = over_cases["ci95"]
    draws = "{:+.3f} to {:+.3f}".format(*over_draws["ci95"]) if over_draws["n"] > 1 else "one draw"
    name = f"  {setting}: {method} minus {baseline.split(': ')[-1]}"
    print(f"{name:72}{over_cases['mean']:+7.3f} ({low:+.3f} to {high:+.3f})   {draws:>18}{p:10.2g}")

# %%
figure, axis = plt.subplots(figsize=(10, 0.25 * len(rows) + 1))
for i, row in enumerate(rows):
    over_cases = row[4]
    low, high = over_cases["ci95"]
    clear = low > 0 or high < 0
    colour = "tab:green" if low > 0 else "tab:red" if clear else "grey"
    axis.plot([low, high], [-i, -i], color=colour)
    axis.plot(over_cases["mean"], -i, "o", color=colour)
axis.axvline(0.0, color="black", linewidth=0.8)
axis.set_yticks(
    [-i for i in range(len(rows))],
    [
        f"{table.removesuffix('_cases')} | {setting}: {m} - {b.split(': ')[-1]}"
        for table, setting, m, b, *_ in rows
    ],
    fontsize=8,
)
axis.set_xlabel("difference of Dice on the same cases, 95 % over cases")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What the hypergradient found
#
# `search.csv` and `search_96px.csv` have the hypergradient of the mixture of four sources of pairs, once
# per held-out fold and start, each through a whole training. A dot is a fold, its starts averaged.
# Positive: more of this source raises the loss. If the folds agreed, the dots of a column would lie on one
# side of 0; `mixture_searched` moves only on evidence, and here there is none.

# %%
sources = ("augmented", "copy_paste", "cutmix", "colour_transfer")
larger = [row | {"dataset": f"{row['dataset']}, 96 px"} for row in TABLES["search_96px"]]
trials = [*TABLES["search"], *larger]
searched = sorted({row["dataset"] for row in trials})
figure, axes = plt.subplots(1, len(searched), figsize=(5 * len(searched), 3), sharey=True)
for axis, dataset in zip(np.atleast_1d(axes), searched, strict=True):
    for i, source in enumerate(sources):
        folds = collections.defaultdict(list)
        for row in (r for r in trials if r["dataset"] == dataset):
            folds[row["fold"]].append(float(row[source]))
        values = np.array([np.mean(starts) for starts in folds.values()])
        low, high = statistics.summarise_seeds(values)["ci95"]
        axis.plot(i + np.linspace(-0.15, 0.15, len(values)), values, ".", color=f"C{i}")
        axis.plot([i, i], [low, high], color="black")
        t = values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))
        axis.annotate(
            f"t = {t:.1f}", (i, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8
        )
    axis.axhline(0.0, color="grey", linewidth=0.8)
    axis.set_xticks(range(len(sources)), [s.replace("_", " ") for s in sources], fontsize=8)
    axis.set_title(dataset)
np.atleast_1d(axes)[0].set_ylabel("dV / d(logit of the source)")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Which estimator
#
# Cosine to the exact hypergradient against time, on a toy run (top left is best). Through one step,
# looking one step back is exact; through four, every approximation loses something, and not all of them
# are cheaper than the exact one.

# %%
table = TABLES["estimators"]
lengths = sorted({int(row["K"]) for row in table})
figure, axes = plt.subplots(1, len(lengths), figsize=(5.5 * len(lengths), 3.4), sharey=True)
for axis, K in zip(np.atleast_1d(axes), lengths, strict=True):
    shown = [row for row in table if int(row["K"]) == K]
    for i, row in enumerate(shown):
        name = row["estimator"] + (
            "" if row["gradient"] in ("", "mixed") else f" ({row['gradient']})"
        )
        marker = "os^Dv"[i // 10]
        axis.plot(float(row["milliseconds"]), float(row["cosine"]), marker, label=name)
    axis.set_xscale("log")
    ticks = [n for n in (20, 50, 100, 200, 500, 1000) if n < 1.2 * axis.get_xlim()[1]]
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.minorticks_off()
    axis.set_title(f"K = {K}")
    axis.set_xlabel("milliseconds")
axes[0].set_ylabel("cosine to the exact one")
axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What pays, and what does not
#
# Read off the rows above, and no further than they reach:
#
# * **A pretrained encoder pays** on all four data sets, by one draw each: 7 to 29 points of Dice over an
#   augmented U-Net on test images (`fewshot_144_test`). Augmentation alone went with -5 to +5 there.
# * **Several sources of synthetic pairs in equal parts** gave a few points of Dice on polyps; on
#   ultrasound, dermoscopy and ulcers nothing that an interval tells from 0.
# * **A generator** trained on the same forty images helps a short training on ultrasound, and a long
#   one less; elsewhere its intervals contain 0.
# * **The hypergradient** is right (it equals central differences) and cheap enough, and has not yet
#   bought anything measurable over training side by side, or over sources in equal parts.
#
# Add a row, run this again: a new file of rows whose name ends in `_cases` appears in every figure of
# the third section. `python benchmarks/fewshot_table.py FOLDER
# --rows=benchmarks/results/NAME_cases.csv.gz` writes one from the runs of a folder.
