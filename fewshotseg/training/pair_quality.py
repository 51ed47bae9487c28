"""What the synthetic pairs of a trained method are like, measured on a few of them for the report."""

import functools
import json
import pathlib
from typing import Any

import numpy as np

from fewshotseg import files, labels
from fewshotseg.data import cases
from fewshotseg.models import factory
from fewshotseg.runs import checkpoint
from fewshotseg.training import build_pairs, build_parts, synthesize, synthetic_pairs

FILE = "synthetic_pairs.json"  # in the folder of a method


def measure(
    config, data: cases.Data, spec: factory.Spec, workdir: pathlib.Path, name: str
) -> dict[str, Any] | None:
    """Writes how consistent the pairs of a method are, and how near the training images: FILE.

    `config.evaluate.num_pairs` of every source, as the segmenter saw them but for the intensity jitter;
    none is left out. Consistency: Dice of the pair's mask and the one that the model of the run that was
    trained on real images alone predicts. Nearest: the largest correlation of the thumbnails of a pair's
    image and of a training image, mirrored or not; near 1, the image is a copy.

    Args:
      config: of the run.
      data: its cases.
      spec: what they decide.
      workdir: of the run, whose methods are trained.
      name: of the method.

    Returns:
      What FILE holds; None where there is nothing to measure: no pairs are made, none wanted, or they
      are of tiles, which no thumbnail of a training image is like.
    """
    method = build_pairs.resolve_method(config, name)
    num = config.evaluate.num_pairs
    if not (method.sources and num) or data.tiles:
        return None
    model, _ = checkpoint.load_model(workdir / name / "checkpoints")
    judge = synthesize.load_judge(workdir)
    about = {
        "step": int(model["step"]),
        "num": num,
        "seed": config.synthesize.seed,
        "judge": judge.source if judge else None,
    }
    path = workdir / name / FILE
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in about} == about:
            return found
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    makers = synthetic_pairs.create_makers(config, parts, method, model, data)
    judged = judge and functools.partial(synthetic_pairs.agreement, judge)
    training_cases, rows = synthesize.training_cases(data), []
    for source, make in makers.items():
        made = synthetic_pairs.fill(make, num, judge=judged, least=0.0, max_tries=1, what=source)
        for pair in made.pairs:
            row = {"source": source, **synthesize.describe_pair(pair, training_cases)}
            row["foreground"] = round(float(np.mean(labels.is_foreground(pair.mask))), 4)
            rows.append(row)
    found = {**about, "pairs": rows}
    files.write_json(path, found)
    return found
