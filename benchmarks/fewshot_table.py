"""Tables of the runs of fewshot.py: levels, and differences with intervals over cases and over draws.

python benchmarks/fewshot_table.py runs/fewshot [more folders] --rows=FILE.csv.gz     writes a row per case
python benchmarks/fewshot_table.py FILE.csv.gz [--data_dir=FOLDER --list=val] [--against=real_only]
    --against='efficient_unet: mixture'     all, rows of peers.py too, against the method of one segmenter
    --across=steps --against='real_only at 400 steps'     a method against itself at another number of steps
"""

import collections
import csv
import gzip
import math
import pathlib
import statistics
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
flags.DEFINE_string("rows", "", "Where to write the rows; a second file RUNS_... has one per run.")
flags.DEFINE_string("data_dir", "", "As of fewshot.py; with --list.")
flags.DEFINE_string("list", "", "Only the cases of this list.")
flags.DEFINE_string("against", "real_only", "METHOD, or SEGMENTER: METHOD, to compare with.")
flags.DEFINE_string("across", "", "Of size, steps and labels one that tells methods apart.")
flags.DEFINE_string("class_name", "", "Of which class; '': of each case the mean over its classes.")

SETTING = ("dataset", "segmenter", "size", "steps", "labels")
# Of several classes a row for each, and one of class '' for their mean; old files have no such column.
METRICS = {"dice": 4, "hd95": 1, "nsd": 4, "cldice": 4}  # digits
COLUMNS = (*SETTING, "method", "draw", "case", "unit", *METRICS, "class")
RUN_COLUMNS = (*SETTING, "method", "draw", "seconds", "validation_dice", "device", "revision")


def read_runs(folders) -> tuple[list[dict], list[dict]]:
    """A row per case, and a row per training, of all runs anywhere in some folders."""
    from fewshotseg.results import metrics
    from fewshotseg.results import statistics as stats
    from fewshotseg.results.report import inputs

    cases, runs = [], []
    for path in sorted(p for folder in folders for p in pathlib.Path(folder).rglob("config.json")):
        run = inputs.read_run(path.parent)
        units = stats.of_test_set(run.clusters, "test")
        labels = sum(len(run.splits.get(part, ())) for part in ("train", "validation"))
        for (method, test_set), found in run.evaluations.items():
            own = inputs.METHODS[method].segmenter or run.config["segmenter"]["name"]
            size, steps = run.config["data"]["image_size"], run.config["train"]["num_steps"]
            size = " x ".join(map(str, size)) if isinstance(size, list) else size
            row = dict(zip(SETTING, (run.name, own, size, steps, labels), strict=True))
            on_all = " on all labels" if run.holds_none_out else ""
            row |= {"method": method + on_all, "draw": run.seed}
            last = run.logs[method][-1].get("validation/model_dice")
            runs.append(row | {
                "seconds": round(run.seconds(method), 1), "validation_dice": last,
                "device": run.environment.get("device"),
                "revision": run.environment.get("git_revision"),
            })  # fmt: skip
            if test_set != "test":
                continue
            found = [{k: math.nan if v is None else v for k, v in of.items()} for of in found]
            for case, of_classes in metrics.rows_by_case(found).items():
                shown = [("", metrics.mean_over_classes(of_classes))]
                shown += [(of["class"], of) for of in of_classes if len(of_classes) > 1]
                for name, of in shown:
                    values = {k: round(of[k], n) for k, n in METRICS.items() if k in of}
                    known = {"case": case, "unit": units.get(case, ""), "class": name}
                    cases.append(dict.fromkeys(METRICS, "") | row | known | values)
    return cases, runs


def write_rows(rows, columns, path: pathlib.Path) -> None:
    """A CSV file, compressed if its name ends in .gz, always the same bytes for the same rows."""
    if path.suffix == ".gz":
        with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            text = [
                "\t".join(columns),
                *("\t".join(str(row.get(c, "")) for c in columns) for row in rows),
            ]
            file.write("\n".join([*text, ""]).replace("\t", ",").encode())
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: pathlib.Path) -> list[dict]:
    """Rows that `write_rows` wrote; numbers are text, but for the metrics."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row | {k: float(row[k]) for k in METRICS if row.get(k)} for row in rows]


def across(rows, field: str) -> list[dict]:
    """Rows whose method is named with a part of its setting, so that it can be compared with itself."""
    return [
        row | {field: "any", "method": f"{row['method']} at {row[field]} {field}"} for row in rows
    ]


def by_method(rows, class_name="") -> dict[tuple, dict[str, dict[str, dict[str, dict]]]]:
    """Setting without the segmenter -> 'segmenter: method' -> draw -> case -> row of a class."""
    found = collections.defaultdict(dict)
    for row in rows:
        if row.get("class", "") != class_name:
            continue
        where = tuple(str(row[k]) for k in SETTING if k != "segmenter")
        name = f"{row['segmenter']}: {row['method']}"
        draws = found[where].setdefault(name, {})
        draws.setdefault(str(row["draw"]), {})[row["case"]] = row
    return dict(found)


def mean_by_case(draws, wanted, metric) -> dict[str, float]:
    """A metric by case, averaged over the wanted draws; a case that one of them lacks is left out."""
    cases = set.intersection(*({*draws[d]} for d in wanted))
    means = {c: statistics.fmean(draws[d][c][metric] for d in wanted) for c in sorted(cases)}
    return {case: value for case, value in means.items() if math.isfinite(value)}


def compare(ours, theirs, metric) -> dict | None:
    """The difference of two methods over the draws that both have; None if there is none.

    Returns:
      What `statistics.paired_difference` returns, over cases, with `draws`: of the mean difference of
      every draw, what `statistics.summarise_seeds` returns.
    """
    from fewshotseg.results import statistics as stats

    wanted = sorted({*ours} & {*theirs})
    if not wanted:
        return None
    pair = [mean_by_case(method, wanted, metric) for method in (ours, theirs)]
    units = {case: row["unit"] for case, row in theirs[wanted[0]].items()}
    found = stats.paired_difference(
        *pair, {c: f"cluster {u}" if u else "" for c, u in units.items()}
    )
    by_draw = []
    for draw in wanted:
        a, b = (mean_by_case(method, [draw], metric) for method in (ours, theirs))
        shared, _ = stats.common_cases([a, b])
        by_draw.append(statistics.fmean(a[c] - b[c] for c in shared))
    return found | {"draws": stats.summarise_seeds(by_draw)}


_TITLES = {"hd95": ("HD95", 1), "nsd": ("NSD", 3), "cldice": ("clDice", 3)}


def table(rows, against: str, class_name: str = "") -> str:
    """Levels of every method, and differences to one (of the same segmenter where it has it), in Markdown.

    Of a class, or of the mean of all; NSD and clDice where every row has them.

    'segmenter: method' is the same for all; where it was not trained for those steps, but for one other
    number of them only, that is taken: peers have minutes for steps.

    p values are of the rank test over cases, adjusted (Holm) over the data sets that a method was
    trained on in one setting.
    """
    from fewshotseg.results import statistics as stats

    found, lines, families = by_method(rows, class_name), [], collections.defaultdict(list)
    measured = ["dice", "hd95"] + [
        k for k in ("nsd", "cldice") if all(isinstance(row.get(k), float) for row in rows)
    ]
    for where, methods in found.items():
        for name, draws in methods.items():
            base = _base(found, where, name, against)
            base = None if base is draws else base
            found_dice = compare(draws, base, "dice") if base else None
            if found_dice:
                families[name, where[1:]].append((where, found_dice["p_wilcoxon"]))
            levels = [
                statistics.fmean(mean_by_case(draws, sorted(draws), metric).values())
                for metric in measured
            ]
            others = [compare(draws, base, metric) if base else None for metric in measured[1:]]
            lines.append((where, name, len(draws), levels, found_dice, others))
    adjusted = {}
    for (name, _), members in families.items():
        for (where, _), p in zip(members, stats.holm([p for _, p in members]), strict=True):
            adjusted[where, name] = p
    text = [
        f"| data set | px | steps | labels | segmenter: method | draws | Dice | minus {against}, points "
        "| over draws | p (Holm) | "
        + " | minus | ".join(_TITLES[k][0] for k in measured[1:])
        + " | minus |",
        "|" + " --- |" * (8 + 2 * len(measured)),
    ]
    for where, name, number, (dice, *levels), d, others in lines:
        cells = ["", "", ""]
        if d:
            cells[0] = f"{100 * d['mean']:+.1f}{_ends(d['ci95'], 1, 100)}"
            low, high = d["draws"]["ci95"]
            cells[1] = "" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
            cells[2] = f"{adjusted[where, name]:.2g}"
        for metric, level, other in zip(measured[1:], levels, others, strict=True):
            digits = _TITLES[metric][1]
            cells.append(f"{level:.{digits}f}")
            cells.append("")
            if other:
                cells[-1] = f"{other['mean']:+.{digits}f}{_ends(other['ci95'], digits)}"
        text.append("| " + " | ".join((*where, name, str(number), f"{dice:.3f}", *cells)) + " |")
    return "\n".join(text)


def _ends(ci95, digits: int, times: float = 1) -> str:
    """' (low to high)'; '' of too few cases for an interval."""
    low, high = (f"{times * end:+.{digits}f}" for end in ci95)
    return "" if math.isnan(ci95[0]) else f" ({low} to {high})"


def _base(found, where, name, against):
    """The draws to compare with; None if there are none, or several that might be meant."""
    if ": " not in against:
        return found[where].get(f"{name.split(': ')[0]}: {against}")
    dataset, size, _, labels = where
    alike = [
        methods for (*of, _, n), methods in found.items() if (*of, n) == (dataset, size, labels)
    ]
    bases = [methods[against] for methods in alike if against in methods]
    return found[where].get(against, bases[0] if len(bases) == 1 else None)


def of_list(rows, data_dir: str, name: str) -> list[dict]:
    """The rows whose case is in a list of its data set."""
    from fewshotseg.data import split_files

    known = collections.defaultdict(dict)
    for row in rows:
        known[row["dataset"]][row["case"]] = None
    wanted = {}
    for dataset, cases in known.items():
        path = pathlib.Path(data_dir, "splits", dataset, f"{name}.txt")
        listed = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        lookup = {i for i in listed if any(c == i or c.endswith("/" + i) for c in cases)}
        wanted[dataset] = set(split_files.resolve_ids(sorted(lookup), list(cases), str(path)))
    return [row for row in rows if row["case"] in wanted[row["dataset"]]]


def main(argv):
    places = [pathlib.Path(arg) for arg in argv[1:]]
    if not places:
        sys.exit("fewshot_table.py: give folders of runs, or files of rows.")
    rows = [row for place in places if place.is_file() for row in read_rows(place)]
    folders = [place for place in places if place.is_dir()]
    if folders:
        cases, runs = read_runs(folders)
        rows += cases
        if FLAGS.rows:
            path = pathlib.Path(FLAGS.rows)
            write_rows(cases, COLUMNS, path)
            name = path.name.replace("_cases", "").partition(".")[0] + "_runs.csv"
            write_rows(runs, RUN_COLUMNS, path.with_name(name))
            return
    if FLAGS.list:
        rows = of_list(rows, FLAGS.data_dir, FLAGS.list)
    if FLAGS.across:
        rows = across(rows, FLAGS.across)
    print(table(rows, FLAGS.against, FLAGS.class_name))


if __name__ == "__main__":
    app.run(main)
