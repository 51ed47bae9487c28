"""Run folders in, one self-contained HTML page out, with the same numbers as CSV and as text.

The page needs no network: images are data URIs, there is no script. It reads what training and
evaluation have written so far, so it can be made at any time, and it needs no accelerator library.
"""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2

from fewshotseg import files
from fewshotseg.errors import InputError
from fewshotseg.results import metrics
from fewshotseg.results.report import advice, csv_rows, decisions, sections, synthetic, tables
from fewshotseg.results.report.inputs import read_runs
from fewshotseg.results.report.run import Run
from fewshotseg.results.report.scores import Comparison, Score, compare, grouped, score_runs

_TEMPLATE = pathlib.Path(__file__).with_name("template.html")


def build_report(workdirs: Sequence[pathlib.Path], output: pathlib.Path) -> pathlib.Path:
    """Writes the report of one or several runs.

    Beside `output` it writes results.csv (unrounded, one row for every run, method, test set and
    metric), cases.csv (one row for every run, method, test set and case), pairs.csv (one row for every
    synthetic pair that was measured) and the plots as PNG in the folder report/; outside of the run
    folders, where other people's files lie, these are named after the page (both_results.csv, ...). Runs
    with the same experiment, data, number of labelled images and settings count as seeds of one experiment.

    Args:
      workdirs: run folders; what is not there yet is named in the report.
      output: of the page, usually WORKDIR/report.html.

    Returns:
      `output`.

    Raises:
      InputError: a folder is no run, there are none, or the output cannot be written.
    """
    output = pathlib.Path(output)
    found = _collect(workdirs)
    own = [(run.workdir / "report.html").resolve() for run in found.runs]
    prefix = "" if output.resolve() in own else f"{output.stem}_"
    pictures = sections.Pictures(output.with_name(f"{prefix}report"))
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    ).get_template(_TEMPLATE.name)
    several = len(found.runs) > 1
    text = page.render(
        title=" and ".join(dict.fromkeys(run.name for run in found.runs)),
        subtitle=_subtitle(found.runs),
        notes=_notes(found.runs),
        handovers=[
            {"advice": h, "worst": sections.worst(h.run, *h.worst, pictures) if h.worst else None}
            for h in found.handovers
        ],
        verdicts=found.verdicts,
        tables=[table for table in found.tables if table.rows],
        case_tables=_case_tables(found),
        any_results=bool(found.scores),
        prefix=prefix,
        empty_masks=metrics.EMPTY_MASKS,
        runs=[sections.of_run(run, found.scores, pictures, several) for run in found.runs],
    )
    rows = csv_rows.summary_rows(found.scores)
    files.write_rows(output.with_name(f"{prefix}results.csv"), rows, csv_rows.COLUMNS)
    rows = csv_rows.case_rows(found.scores)
    files.write_rows(output.with_name(f"{prefix}cases.csv"), rows, csv_rows.CASE_COLUMNS)
    rows = synthetic.pair_rows(found.runs)
    files.write_rows(output.with_name(f"{prefix}pairs.csv"), rows, synthetic.COLUMNS)
    files.write_text(output, text)
    return output


def results_table(workdirs: Sequence[pathlib.Path]) -> str:
    """The report's tables, verdicts and advice as plain text for a terminal, the same numbers.

    Raises:
      InputError: as for `build_report`.
    """
    found = _collect(workdirs)
    blocks = [f"NOTE, {place}: {note}" for place, note in _notes(found.runs)]
    blocks += [_as_text(table) for table in found.tables if table.rows]
    if not found.scores:
        blocks.append("No run has been evaluated yet.")
    for verdict in found.verdicts:
        blocks.append(f"{verdict.subject}:\n  {verdict.headline}\n  {verdict.text}")
    for handover in found.handovers:
        lines = [handover.headline, *handover.sentences, handover.command]
        blocks.append("\n  ".join(line for line in lines if line))
    return "\n\n".join(blocks)


class _Found(NamedTuple):
    runs: list[Run]
    scores: list[Score]
    comparisons: list[Comparison]
    tables: list[tables.Table]
    verdicts: list[advice.Verdict]
    handovers: list[advice.Handover]


def _collect(workdirs) -> _Found:
    if not workdirs:
        raise InputError("a report needs at least one run folder: give --workdir.")
    runs = read_runs(list(dict.fromkeys(pathlib.Path(w).resolve() for w in workdirs)))
    scores = score_runs(runs)
    comparisons = compare(scores)
    made = [
        tables.seed_table(scores),
        tables.score_table(scores),
        tables.class_table(scores),
        tables.comparison_table(comparisons),
        decisions.decision_table(runs),
        synthetic.pair_table(runs),
        decisions.feedback_table(runs),
    ]
    verdicts = advice.verdicts(runs, scores, comparisons)
    return _Found(runs, scores, comparisons, made, verdicts, advice.handovers(scores))


def _notes(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What a user must know of the splits, once, with the name of the run."""
    return list(dict.fromkeys((run.workdir.name, note) for run in runs for note in run.notes))


def _case_tables(found: _Found) -> list[dict[str, Any]]:
    made = []
    chosen = {id(h.run): h.worst[0] for h in found.handovers if h.worst}
    for (run_id, test_set), scores in grouped(found.scores, lambda s: (id(s.run), s.test_set)):
        run = scores[0].run
        title = f"{test_set}: {len(scores[0].rows)} cases"
        title = f"{run.name}, seed {run.seed}, {title}" if len(found.runs) > 1 else title
        table = tables.case_table(scores, chosen.get(run_id, scores[-1].method))
        made.append({"title": title, "table": table})
    return made


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs, seeds {', '.join(dict.fromkeys(run.seed for run in runs))}"
    run = runs[0]
    device = run.environment.get("device", "unknown device")
    return f"{run.data or 'data'}, labelled images: {run.labelled}, seed {run.seed}, {device}"


def _as_text(table: tables.Table) -> str:
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
    note = textwrap.fill(table.note, 100)
    return "\n".join([table.caption, rule, lines[0], rule, *lines[1:], rule, note]).rstrip()
