"""The pictures of a run, in the sections of the report."""

import base64
import io
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from fewshotseg import files
from fewshotseg.methods import METHODS
from fewshotseg.results.report import plots, synthetic, words
from fewshotseg.results.report.run import Run
from fewshotseg.results.report.scores import BASELINE
from fewshotseg.runs import remote

_WIDEST = 1600  # pixels; wider images are shrunk before they are embedded
_COLOURS = "Orange: prediction. Blue: reference."
# Sizes of the candidate kernels of a generator family; those of all others are the GAN's.
_KERNELS = {
    "gan": ("4", "6", "8"),
    **dict.fromkeys(("diffusion", "vae", "wgan"), ("3", "5", "7")),
}


class Pictures:
    """Embeds images, and writes those that were drawn here beside the page as well."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def drawn(self, name: str, caption: str, figure) -> dict[str, str]:
        """A plot; without a caption, the titles of its axes describe it to who cannot see it."""
        data = plots.png(figure)
        alt = caption or ", ".join(axis.get_title() for axis in figure.axes)
        files.write_bytes(self._folder / f"{name}.png", data)
        return {"caption": caption, "alt": alt, "uri": _data_uri(data)}

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
        return {"caption": caption, "alt": caption, "uri": _data_uri(buffer.getvalue(), "jpeg")}


def of_run(run: Run, scores, pictures: Pictures, several: bool) -> dict[str, Any]:
    """Title, facts and sections of one run; a section without pictures is left out.

    Args:
      run: which.
      scores: of all runs.
      pictures: where they go.
      several: whether file names need the name of the run.
    """
    prefix = re.sub(r"[^\w.-]+", "_", run.workdir.name) + "_" if several else ""
    sections = [
        _data_section(run, pictures),
        _curve_section(run, pictures, prefix),
        _search_section(run, pictures, prefix),
        _pair_section(run, pictures),
        _quality_section(run, pictures, prefix),
        _reliability_section(run, pictures, prefix),
        _scatter_section(run, scores, pictures, prefix),
        *_example_sections(run, pictures),
    ]
    return {
        "title": f"{run.experiment.title}, seed {run.seed}",
        "facts": _facts(run),
        "missing": run.missing,
        "sections": [section for section in sections if section and section["figures"]],
    }


def worst(run: Run, method: str, test_set: str, pictures: Pictures) -> dict[str, Any] | None:
    """The worst cases of one method on one test set."""
    shown = _examples(run, method, test_set, ("worst",), pictures)
    title = f"The worst cases of {method} on {test_set}"
    section = _section(title, shown, f"{_COLOURS} Look at them before you trust it.", "cases")
    return section if section["figures"] else None


def _section(title: str, pictures, note: str = "", gallery: str = "") -> dict[str, Any]:
    kept = [picture for picture in pictures if picture]
    return {"title": title, "figures": kept, "note": note, "gallery": gallery}


def _data_section(run, pictures):
    sheet = pictures.found(run.workdir / "contact_sheet.png", "Labelled images with mask outlines")
    return _section("Data", [sheet])


def _curve_section(run, pictures, prefix):
    shown = [
        pictures.drawn(f"{prefix}curve_{name}", "", figure)
        for name, figure in plots.learning_curves(run.logs).items()
    ]
    norm = plots.hypergradient_norm(run.logs)
    if norm is not None:
        shown.append(pictures.drawn(f"{prefix}hypergradient_norm", "", norm))
    note = "A colour per method. "
    if run.holds_none_out:
        note += "All labelled images were trained on: none was left to measure Dice on beside it."
    else:
        note += "Training looks at the validation images, so their Dice is optimistic."
    return _section("Learning curves", shown, note, "plots")


def _search_section(run, pictures, prefix):
    shown = []
    for method, log in run.logs.items():
        found = plots.architecture(log, _KERNELS.get(_family(run), _KERNELS["gan"]))
        if found is None:
            continue
        figure, change = found
        caption = (
            f"{method}: weights of the candidate kernels at every level; the largest change of any "
            f"weight is {change:.4f}."
        )
        if change < 1e-3:
            caption += " In effect the architecture has not moved."
        shown.append(pictures.drawn(f"{prefix}architecture_{method}", caption, figure))
    return _section("Search of the generator's architecture", shown, gallery="wide")


def _pair_section(run, pictures):
    """The latest samples of every generator that a method moves, and of all other sources of pairs."""
    rows = {m: run.row(m) for m in METHODS}
    frozen = [m for m in rows if rows[m].sources == ("generator",) and not rows[m].trains_generator]
    moved = [m for m in rows if rows[m].sources and m not in frozen]
    shown = []
    for stage in ("generator", *moved):
        samples = sorted((run.workdir / stage / "samples").glob("*.png"), key=_step_of)
        if samples:
            name = "pre-trained" if stage == "generator" else stage
            caption = f"{name}, step {_step_of(samples[-1])}"
            shown.append(pictures.found(samples[-1], caption))
    frozen = [m for m in frozen if m in run.logs]
    note = "The latest samples of every source of pairs."
    if frozen:
        note += f" {', '.join(frozen)}: the pre-trained one, frozen."
    return _section("Real and synthetic images", shown, note, "samples")


def _quality_section(run, pictures, prefix):
    """Every measured pair as a point."""
    figure = synthetic.scatter(run.pairs)
    shown = [pictures.drawn(f"{prefix}synthetic_pairs", "", figure)] if figure else []
    note = "A point per pair. To the right: nearly a copy of a training image. Low: its mask does not fit."
    return _section("Synthetic pairs, one by one", shown, note, "plots")


def _family(run):
    family = run.config.get("family")
    return family.get("name") if isinstance(family, Mapping) else None


def _reliability_section(run, pictures, prefix):
    by_class: dict[tuple[str, str], dict] = {}
    for method, test_set in run.evaluations:
        classes = run.summaries[method, test_set].get("classes")
        for name, found in classes.items() if isinstance(classes, Mapping) else ():
            if isinstance(found, Mapping) and isinstance(found.get("calibration"), Mapping):
                by_class.setdefault((test_set, name), {})[method] = found["calibration"]
    shown = []
    for i, ((test_set, name), curves) in enumerate(by_class.items()):
        title = f"{name} on {test_set}"
        figure = plots.reliability(curves, title)
        shown.append(pictures.drawn(f"{prefix}reliability_{i}_{_word(test_set)}", "", figure))
    note = (
        "Below the diagonal the model is surer than it is right. Over all pixels of the test set."
    )
    fitted = [_temperature(method, found) for method, found in run.calibrations.items()]
    if fitted:
        note += f" Temperatures, of the validation images: {'; '.join(fitted)}."
    elif run.holds_none_out:
        note += (
            " No image was held out to fit a temperature to: they are as the networks give them."
        )
    return _section("Reliability of the probabilities", shown, note, "plots")


def _temperature(method: str, found: Mapping[str, Any]) -> str:
    """What a method's logits are divided by, and what that does to its validation images."""
    before, after, temperature = (
        words.number(math.nan if found.get(key) is None else found[key])
        for key in ("ece_before", "ece_after", "temperature")
    )
    return f"{method} {temperature} (expected calibration error there {before}, now {after})"


def _scatter_section(run, scores, pictures, prefix):
    shown = []
    dice = {(s.method, s.test_set): s.by_case() for s in scores if s.run is run}
    for method, test_set in dice:
        base = dice.get((BASELINE, test_set))
        if method == BASELINE or base is None:
            continue
        other = dice[method, test_set]
        pairs = [(base[i], other[i]) for i in base if i in other]
        pairs = [(x, y) for x, y in pairs if x == x and y == y]  # NaN differs from itself
        figure = plots.case_scatter(pairs, BASELINE, method)
        if figure is not None:
            name = f"{prefix}cases_{method}_{_word(test_set)}"
            shown.append(pictures.drawn(name, f"{method} on {test_set}", figure))
    return _section("Case by case", shown, gallery="plots")


def _example_sections(run, pictures):
    for method, test_set in run.evaluations:
        shown = _examples(run, method, test_set, ("worst", "median", "best"), pictures)
        title = f"Test cases of {test_set} under {method}"
        yield _section(title, shown, f"Chosen by Dice. {_COLOURS}", gallery="cases")


def _examples(run, method, test_set, kinds, pictures):
    folder = run.workdir / method / "evaluation" / test_set / "examples"
    listed = run.summaries[method, test_set].get("examples") or ()
    cases = {pathlib.PurePosixPath(e["file"]).name: e["case"] for e in listed}
    shown = []
    for kind in kinds:
        for path in sorted(folder.glob(f"{kind}_*.png")):
            name = " ".join(path.stem.split("_")[:2])
            case = cases.get(path.name)
            shown.append(pictures.found(path, f"{name}: {case}" if case else name))
    return shown


def _facts(run: Run) -> list[tuple[str, str]]:
    splits = {k.removeprefix("test/"): len(v) for k, v in run.splits.items() if k[:5] == "test/"}
    facts = [
        ("Folder", remote.shown(run.workdir)),
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
    value = " x ".join(map(str, value)) if isinstance(value, list) else value
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


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def _step_of(path: pathlib.Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1


def _data_uri(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(image).decode("ascii")
