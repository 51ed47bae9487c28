"""Synthetic pairs of a trained run as files: drawn by its generator, or made of its training cases."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fewshotseg import errors, labels, pictures
from fewshotseg.data import canvas, look_alikes
from fewshotseg.data import cases as data_cases
from fewshotseg.results import predictor, synthetic_folder, trained_models
from fewshotseg.runs import checkpoint, folder, log
from fewshotseg.training import build_data, build_pairs, build_parts, synthetic_pairs
from fewshotseg.types import Case

# Methods that may judge pairs, the first that is trained: none has seen a synthetic image.
JUDGES = ("real_only", "real_only_half", "real_plain", "unet_only", "unet_plain")
NOTICE = (
    "Made by a program from images of others: these are no patients. For research, not for diagnosis. Keep "
    "them apart from real images, above all in tests."
)


def synthesize(config, workdir: pathlib.Path, output: pathlib.Path, num: int) -> dict[str, Any]:
    """Writes synthetic pairs of a run, those that a segmenter trained on real images agrees with.

    Pairs are what the segmenter of the method saw beside real ones, without the intensity jitter: new
    masks are augmented masks of training cases. The sources have the shares that the run found for them.
    They are drawn anew: what ratings made rarer among those it trained on comes as often as the rest.

    Args:
      config: of the run; `config.predict.method` may name a method, else its last one with synthetic
        pairs counts; `config.synthesize` says the rest.
      workdir: of the run.
      output: a new or an empty folder; it appears when all is written.
      num: of pairs.

    Returns:
      What synthetic.json holds.

    Raises:
      InputError: `num` below 1, a run with tiles, files in `output`, no trained method with synthetic
        pairs, other training cases than those of the run, or too few pairs that the judge agrees with.
    """
    if num < 1:
        raise errors.InputError(f"--num is {num}: ask for at least 1 pair.")
    if config.data.fit == "tiles":
        raise errors.InputError(
            "data.fit is 'tiles': synthesize writes pairs of whole images, train with data.fit='squash'."
        )
    synthetic_folder.check_empty(output)
    name = choose_method(config, trained_models.trained_methods(workdir))
    judge = load_judge(workdir)
    data = build_data.create_data(config)
    check_split(workdir, data)
    method = build_pairs.resolve_method(config, name)
    spec = build_parts.create_spec(config, data.num_classes)
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    model, _ = checkpoint.load_model(workdir / name / "checkpoints")
    makers = synthetic_pairs.create_makers(config, parts, method, model, data)
    shares = synthetic_pairs.shares_of(parts, method, model["theta"])
    print(
        f"Synthetic pairs of {name}, step {int(model['step'])}: "
        + ", ".join(f"{source} {share:.0%}" for source, share in shares.items()),
        flush=True,
    )
    if judge is None:
        print(
            f"No method of this run was trained on real images alone ({', '.join(JUDGES)}): nothing "
            "judges the pairs, and all are kept.",
            flush=True,
        )
    judged = judge and functools.partial(synthetic_pairs.agreement, judge)
    order = synthetic_pairs.interleave(list(shares.values()), num)
    cases, rows, shown, tried = training_cases(data), {}, {}, {}
    affines = _affines(config, data)
    bar = log.progress_bar("synthetic pairs", num, 0, unit="pair")
    with contextlib.closing(bar), synthetic_folder.whole_folder(output) as partial:
        for index, (source, make) in enumerate(makers.items()):
            places = [place for place, of in enumerate(order) if of == index]
            found = synthetic_pairs.fill(
                make,
                len(places),
                judge=judged,
                least=config.synthesize.min_consistency,
                max_tries=config.synthesize.max_tries,
                what=source,
                report=bar.update,
            )
            tried[source] = found.tried
            for place, pair in zip(places, found.pairs, strict=True):
                affine = affines[pair.cases[0] if pair.cases else 0] if affines else None
                path = synthetic_folder.write_pair(
                    partial,
                    config.synthesize.layout,
                    synthetic_folder.name_of(place + 1),
                    pair.image,
                    pair.mask,
                    f"synthetic pair, made by fewshotseg ({name}), no patient",
                    affine,
                    labels.of_source(data.source),
                    data.num_classes - 1,
                )
                rows[place] = {"file": path, "source": source, **describe_pair(pair, cases)}
                rows[place]["seed"] = config.synthesize.seed
                if place < synthetic_folder.SHOWN:
                    label, spacing = f"{place + 1} {source}", _spacing(affine)
                    shown[place] = Case(label, pair.image, pair.mask, spacing=spacing)
        in_order = [rows[place] for place in range(num)]
        about = {
            "synthetic": True,
            "notice": NOTICE,
            "model": f"{name} of {workdir.resolve().name}, step {int(model['step'])}",
            "method": name,
            "sources": {s: {"share": shares[s], "tried": tried[s]} for s in makers},
            **_measured(in_order, judge, config.synthesize.min_consistency),
            "num": num,
            "layout": config.synthesize.layout,
            "classes": list(data.source.class_names),
            "has_ignored": labels.of_source(data.source).ignored >= 0,
            "image_size": list(spec.image_size),
            "num_axes": len(spec.image_size),
            "channels": spec.channels,
            "seed": config.synthesize.seed,
            "environment": folder.environment(),
        }
        sheet = [shown[place] for place in sorted(shown)]
        layout = config.synthesize.layout
        synthetic_folder.write_about(partial, layout, in_order, sheet, about)
    return about


def choose_method(config, trained: Sequence[str]) -> str:
    """The method whose pairs are wanted: that of `predict.method`, or the last one that makes any.

    Raises:
      InputError: it is not trained, or makes no synthetic pairs; or none does.
    """
    named = config.predict.method
    able = [name for name in trained if build_pairs.resolve_method(config, name).sources]
    if named and named not in able:
        reason = "makes no synthetic pairs" if named in trained else "is not trained in this run"
        others = f"name one of {', '.join(able)}" if able else "none of its methods makes any"
        raise errors.InputError(f"predict.method is {named!r}, which {reason}: {others}.")
    if not able:
        raise errors.InputError(
            f"no trained method of this run makes synthetic pairs (there are: {', '.join(trained)}): "
            "train one that does, such as --config.methods=\"('real_only','mixture')\"."
        )
    return named or ([name for name in config.methods if name in able] or able)[-1]


def load_judge(workdir: pathlib.Path) -> predictor.Predictor | None:
    """The model of the run that was trained on real images alone; None if there is none."""
    trained = trained_models.trained_methods(workdir)
    names = [name for name in JUDGES if name in trained]
    if not names:
        return None
    found = trained_models.load_predictor(workdir, names[0])
    return dataclasses.replace(found, source=f"{names[0]} of this run")


class TrainingCases(NamedTuple):
    """What is said of a pair about the training cases: ids and thumbnails."""

    ids: Sequence[str]
    thumbnails: np.ndarray


def training_cases(data: data_cases.Data) -> TrainingCases:
    """Those of a run."""
    pixels = [pictures.to_uint8(x)[..., : x.shape[-1]] for x in data.train["image"]]
    return TrainingCases(data.split.train, np.stack([look_alikes.thumbnail(x) for x in pixels]))


def _affines(config, data):
    """Of the training cases on the canvas, if they are volumes."""
    size = canvas.as_size(config.data.image_size)
    found = []
    for case in map(data.source.load, data.split.train if len(size) == 3 else ()):
        affine = np.eye(4) if case.affine is None else case.affine
        found.append(canvas.to_network_affine(affine, case.mask.shape, size))
    return found


def describe_pair(pair: synthetic_pairs.Candidate, cases: TrainingCases) -> dict[str, Any]:
    """Where a pair comes from, and what it is like: a row of manifest.csv."""
    thumbnail = look_alikes.thumbnail(pair.image)
    nearest, correlation = look_alikes.nearest(thumbnail, cases.thumbnails)
    return {
        "cases": ";".join(cases.ids[i] for i in pair.cases),
        "consistency": round(pair.consistency, 4),
        "nearest_case": cases.ids[nearest],
        "nearest_correlation": round(correlation, 4),
        "draw": pair.draw,
        "example": pair.example,
    }


def _spacing(affine):
    return () if affine is None else tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())


def check_split(workdir, data):
    """Provenance and look-alikes are of the training cases of the run, or of nothing.

    Raises:
      InputError: the data now give others.
    """
    path = workdir / "splits.json"
    try:
        stored = tuple(json.loads(path.read_text(encoding="utf-8"))["train"])
    except (OSError, ValueError, KeyError):
        return  # a run that says nothing contradicts nothing
    if stored != tuple(data.split.train):
        raise errors.InputError(
            f"{path} has other training cases than the data now give: put the images back as they were "
            "when the run was trained."
        )


def _measured(rows, judge, least):
    """What the pairs are like, over all of them."""
    scores = [row["consistency"] for row in rows if not np.isnan(row["consistency"])]
    nearest = [row["nearest_correlation"] for row in rows]
    return {
        "judge": judge.source if judge else None,
        "min_consistency": least if judge else None,
        "mean_consistency": float(np.mean(scores)) if scores else None,
        "nearest_correlation": {
            "median": float(np.median(nearest)),
            "largest": max(nearest),
            "share_of_near_duplicates": float(
                np.mean([c >= look_alikes.DUPLICATE_CORRELATION for c in nearest])
            ),
        },
    }
