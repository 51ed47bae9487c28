"""Run folders in, one self-contained HTML page out, with the same numbers as CSV and as text.

The page needs no network: images are data URIs, there is no script. It reads what training and
evaluation have written so far, so it can be made at any time, and it needs no accelerator library.
"""

import base64
import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from PIL import Image

from fewshotseg import files
from fewshotseg.errors import InputError
from fewshotseg.results import metrics
from fewshotseg.results.report import plots as report_plots
from fewshotseg.results.report import scores as report_scores
from fewshotseg.results.report import tables as report_tables
from fewshotseg.results.report.inputs import METHODS, Run, read_run

_TEMPLATE = pathlib.Path(__file__).with_name("template.html")
_WIDEST = 1600  # pixels; wider images are shrunk before they are embedded


def build_report(workdirs: Sequence[pathlib.Path], output: pathlib.Path) -> pathlib.Path:
    """Writes the report of one or several runs.

    Beside `output` it writes results.csv (unrounded, one row for every run, method, test set and
    metric) and the plots as PNG in the folder report/. Runs with the same experiment, data and
    number of labelled images count as seeds of one experiment.

    Args:
      workdirs: run folders; what is not there yet is named in the report.
      output: of the page, usually WORKDIR/report.html.

    Returns:
      `output`.

    Raises:
      InputError: a folder is no run, there are none, or the output cannot be written.
    """
    output = pathlib.Path(output)
    runs, scores, comparisons, tables = _collect(workdirs)
    pngs = _Pictures(output.parent / "report")
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    ).get_template(_TEMPLATE.name)
    text = page.render(
        title=_title(runs),
        subtitle=_subtitle(runs),
        verdicts=report_tables.verdicts(runs, comparisons),
        tables=tables,
        any_results=bool(scores),
        convention=metrics.CONVENTION,
        runs=[_run_section(run, scores, pngs, len(runs) > 1) for run in runs],
    )
    rows = report_tables.csv_rows(scores)
    files.write_rows(output.with_name("results.csv"), rows, report_tables.CSV_COLUMNS)
    files.write_text(output, text)
    return output


def results_table(workdirs: Sequence[pathlib.Path]) -> str:
    """The report's tables and verdicts as plain text for a terminal, the same numbers.

    Raises:
      InputError: as for `build_report`.
    """
    runs, scores, comparisons, tables = _collect(workdirs)
    blocks = [_as_text(table) for table in tables if table.rows]
    if not blocks:
        blocks = ["No run has been evaluated yet."]
    for verdict in report_tables.verdicts(runs, comparisons):
        blocks.append(f"{verdict.subject}:\n  {verdict.headline}\n  {verdict.text}")
    return "\n\n".join(blocks)


def _collect(workdirs):
    if not workdirs:
        raise InputError("a report needs at least one run folder: give --workdir.")
    folders = dict.fromkeys(pathlib.Path(workdir).resolve() for workdir in workdirs)
    runs = [read_run(folder) for folder in folders]
    scores = report_scores.score_runs(runs)
    comparisons = report_scores.compare(scores)
    tables = [
        report_tables.seed_table(scores),
        report_tables.score_table(scores),
        report_tables.class_table(scores),
        report_tables.comparison_table(comparisons),
    ]
    return runs, scores, comparisons, tables


class _Pictures:
    """Embeds images, and writes those that were drawn here beside the page as well."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def drawn(self, name: str, caption: str, data: bytes) -> dict[str, str]:
        files.write_bytes(self._folder / f"{name}.png", data)
        return {"caption": caption, "uri": _data_uri(data)}

    def found(self, path: pathlib.Path, caption: str) -> dict[str, str] | None:
        """None if the file is missing or cannot be read as an image."""
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
                if image.width > _WIDEST:
                    image.thumbnail((_WIDEST, 10 * _WIDEST))
                buffer = io.BytesIO()
                # Noise does not compress without loss: as PNG a page would take tens of MB.
                image.save(buffer, format="JPEG", quality=85)
        except (OSError, ValueError, SyntaxError):
            return None
        return {"caption": caption, "uri": _data_uri(buffer.getvalue(), "jpeg")}


def _run_section(run: Run, scores, pngs: _Pictures, several: bool) -> dict[str, Any]:
    prefix = re.sub(r"[^\w.-]+", "_", run.workdir.name) + "_" if several else ""
    sections = [
        _data_section(run, pngs),
        _curve_section(run, pngs, prefix),
        _search_section(run, pngs, prefix),
        _pair_section(run, pngs),
        _scatter_section(run, scores, pngs, prefix),
        *_example_sections(run, pngs),
    ]
    return {
        "title": f"{run.experiment}, seed {run.seed}",
        "facts": _facts(run),
        "missing": run.missing,
        "sections": [section for section in sections if section and section["figures"]],
    }


def _section(title: str, pictures, note: str = "", gallery: str = "") -> dict[str, Any]:
    kept = [picture for picture in pictures if picture]
    return {"title": title, "figures": kept, "note": note, "gallery": gallery}


def _data_section(run, pngs):
    sheet = pngs.found(run.workdir / "contact_sheet.png", "Labelled images with mask outlines")
    return _section("Data", [sheet])


def _curve_section(run, pngs, prefix):
    curves = report_plots.learning_curves(run.logs)
    if curves is None:
        return None
    picture = pngs.drawn(f"{prefix}learning_curves", "A colour per method", curves)
    note = "The validation images also choose the checkpoint, so their Dice is optimistic."
    return _section("Learning curves", [picture], note)


def _search_section(run, pngs, prefix):
    pictures = []
    norm = report_plots.hypergradient_norm(run.logs)
    if norm is not None:
        pictures.append(pngs.drawn(f"{prefix}hypergradient_norm", "Hypergradient", norm))
    for method, log in run.logs.items():
        found = report_plots.architecture(log)
        if found is None:
            continue
        data, change = found
        caption = (
            f"{method}: weights of the candidate kernels at every level; the largest change of any "
            f"weight is {change:.4f}."
        )
        if change < 1e-3:
            caption += " In effect the architecture has not moved."
        pictures.append(pngs.drawn(f"{prefix}architecture_{method}", caption, data))
    return _section("Search of the generator's architecture", pictures)


def _pair_section(run, pngs):
    pictures = []
    for stage in ("generator", *METHODS):
        samples = sorted((run.workdir / stage / "samples").glob("*.png"), key=_step_of)
        if samples:
            caption = f"{stage}, step {_step_of(samples[-1])}"
            pictures.append(pngs.found(samples[-1], caption))
    return _section("Real and synthetic images", pictures, "The latest samples of every stage.")


def _scatter_section(run, scores, pngs, prefix):
    pictures = []
    dice = {(s.method, s.test_set): s.by_case for s in scores if s.run is run}
    for method, test_set in dice:
        base = dice.get((report_scores.BASELINE, test_set))
        if method == report_scores.BASELINE or base is None:
            continue
        other = dice[method, test_set]
        pairs = [(base[i], other[i]) for i in base if i in other]
        pairs = [(x, y) for x, y in pairs if x == x and y == y]  # NaN differs from itself
        data = report_plots.case_scatter(pairs, report_scores.BASELINE, method)
        if data is not None:
            name = f"{prefix}cases_{method}_{test_set}"
            pictures.append(pngs.drawn(name, f"{method} on {test_set}", data))
    return _section("Case by case", pictures, gallery="pairs")


def _example_sections(run, pngs):
    for method, test_set in run.evaluations:
        folder = run.workdir / method / "evaluation" / test_set / "examples"
        files = [sorted(folder.glob(f"{kind}_*.png")) for kind in ("worst", "median", "best")]
        pictures = [
            pngs.found(path, " ".join(path.stem.split("_")[:2])) for kind in files for path in kind
        ]
        note = "Chosen by Dice. Orange: prediction. Blue: reference."
        title = f"Test cases of {test_set} under {method}"
        yield _section(title, pictures, note, gallery="cases")


def _facts(run: Run) -> list[tuple[str, str]]:
    splits = {k.removeprefix("test/"): len(v) for k, v in run.splits.items() if k[:5] == "test/"}
    facts = [
        ("Folder", str(run.workdir)),
        ("Data", run.data or "?"),
        ("Labelled images", run.labelled),
        ("Test cases", ", ".join(f"{name}: {n}" for name, n in splits.items()) or "?"),
        ("Image size", _setting(run, "data", "image_size", " px")),
        ("Seed", run.seed),
    ]
    return facts + list(_flatten(run.environment))


def _setting(run: Run, block: str, field: str, unit: str) -> str:
    values = run.config.get(block)
    value = values.get(field) if isinstance(values, Mapping) else None
    return "?" if value is None else f"{value}{unit}"


def _flatten(values: Mapping[str, Any], prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, Mapping):
            simple = all(not isinstance(v, Mapping | list) for v in value.values())
            if simple:
                yield prefix + key, ", ".join(f"{k} {v}" for k, v in value.items())
            else:
                yield from _flatten(value, f"{prefix}{key} ")
        elif isinstance(value, list):
            yield prefix + key, ", ".join(map(str, value))
        else:
            yield prefix + key, str(value)


def _title(runs: Sequence[Run]) -> str:
    return " and ".join(dict.fromkeys(run.experiment for run in runs))


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs, seeds {', '.join(dict.fromkeys(run.seed for run in runs))}"
    run = runs[0]
    device = run.environment.get("device", "unknown device")
    return f"{run.data or 'data'}, labelled images: {run.labelled}, seed {run.seed}, {device}"


def _step_of(path: pathlib.Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1


def _data_uri(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(image).decode("ascii")


def _as_text(table: report_tables.Table) -> str:
    rows = [table.header, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < table.text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([table.caption, rule, lines[0], rule, *lines[1:], rule, table.note]).rstrip()
