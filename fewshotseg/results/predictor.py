"""The trained models of a run: load one to predict with, or measure them on test sets."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fewshotseg import errors, files
from fewshotseg.data import cases
from fewshotseg.data.cases import Data
from fewshotseg.methods import METHODS
from fewshotseg.models import factory
from fewshotseg.results import baselines, evaluate
from fewshotseg.results.predict_files import Predictor
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_files
from fewshotseg.runs import log as summaries


def load_predictor(folder: str | pathlib.Path) -> Predictor:
    """The model of a run folder, without its training data.

    Args:
      folder: of a run, then the method with the best validation Dice is taken; or of one method in it.

    Raises:
      InputError: nothing has been trained there.
    """
    folder = pathlib.Path(folder)
    root = folder.parent if (folder / "checkpoints").is_dir() else folder
    config = ConfigDict(run_files.read_config(root))
    folders = _trained_folders(root) if root == folder else [folder]
    models = [(checkpoint.load_best(f / "checkpoints")[0], f.name) for f in folders]
    best, method = max(models, key=lambda model: float(model[0]["dice"]))
    class_names = tuple(run_files.read_class_names(root))
    segment = create_segment(config, len(class_names) + 1)
    return Predictor(
        predict_probabilities=functools.partial(segment, best["segmenter"]),
        image_size=config.data.image_size,
        channels=config.data.channels,
        class_names=class_names,
        threshold=config.evaluate.threshold,
        source=(
            f"{method} of {root}, step {int(best['step'])}, "
            f"validation Dice {float(best['dice']):.3f}"
        ),
    )


def create_segment(config, num_classes: int) -> Callable[[Any, np.ndarray], np.ndarray]:
    """`(params, images) -> probabilities` of the segmenter of a configuration, compiled."""
    module = factory.create_segmenter(dict(config.segmenter), factory.num_outputs(num_classes))
    return compile_segmenter(lambda p, x: module.apply({"params": p}, x))


def compile_segmenter(apply: Callable) -> Callable[[Any, np.ndarray], np.ndarray]:
    """`(params, images [B, S, S, C] in [-1, 1]) -> probabilities [B, S, S, K]`, compiled.

    Args:
      apply: `(params, images) -> logits [B, S, S, K]`.
    """

    @jax.jit
    def probabilities(params, images):
        logits = apply(params, images)
        return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)

    return lambda params, images: np.asarray(probabilities(params, images))


def evaluate_model(config, data: Data, folder: pathlib.Path, best) -> None:
    """Measures one trained model on every test set of `data`; results go to FOLDER/evaluation."""
    segment = create_segment(config, data.num_classes)
    for name, (source, ids) in data.test_sets.items():
        bar = summaries.progress_bar(f"{folder.name} on {name}", len(ids), 0, unit="case")

        def progress(done, total, bar=bar):
            bar.update(done - bar.n)

        evaluate.evaluate(
            functools.partial(segment, best["segmenter"]),
            source,
            ids,
            folder / "evaluation" / name,
            image_size=config.data.image_size,
            channels=config.data.channels,
            class_names=data.source.class_names,
            threshold=config.evaluate.threshold,
            batch_size=config.evaluate.batch_size,
            progress=progress,
        )
        bar.close()


def _trained_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Folders of the methods that have a complete checkpoint; a killed run may have others too."""
    folders = [root / m for m in METHODS if checkpoint.has_checkpoint(root / m / "checkpoints")]
    if not folders:
        raise errors.InputError(f"{root} has no trained model yet: run --mode=train first.")
    return folders


def is_evaluated(folder: pathlib.Path, data: Data) -> bool:
    """Whether every test set has its summary, written last."""
    return all((folder / "evaluation" / name / "summary.json").exists() for name in data.test_sets)


def evaluate_run(config, workdir: str | pathlib.Path) -> None:
    """Evaluates every trained method of a run again, on the test sets of `config`.

    Raises:
      InputError: nothing has been trained there.
    """
    workdir = pathlib.Path(workdir)
    run_files.read_config(workdir)
    run_files.check_same(config, workdir)
    folders = _trained_folders(workdir)
    data = cases.create_data(config)
    for folder in folders:
        best, _ = checkpoint.load_best(folder / "checkpoints")
        evaluate_model(config, data, folder, best)


def threshold_baseline(data: Data, folder: pathlib.Path) -> None:
    """Dice of the best single grey-value threshold of the training images, on every test set."""
    train = [data.source.load(i) for i in data.split.train]
    results = {}
    for name, (source, ids) in data.test_sets.items():
        _, _, dice = baselines.best_threshold_dice(train, [source.load(i) for i in ids])
        results[name] = dice
    files.write_json(folder / "threshold.json", results)
    print("Best grey-value threshold:", json.dumps({k: round(v, 3) for k, v in results.items()}))
