"""The trained models of run folders, without their training data."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg.errors import InputError
from fewshotseg.methods import METHODS
from fewshotseg.results import calibration
from fewshotseg.results.choice import predicting_method
from fewshotseg.results.predictor import Predictor, create_predictor
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_folder

# In place of the validation Dice of a model that was trained on all labelled images.
NONE_HELD_OUT = -2.0
_AGREE = (
    "class_names", "labels", "image_size", "channels", "threshold", "grey_values", "tiles", "channel"
)  # fmt: skip


def load_predictor(folder: str | pathlib.Path, method: str = "") -> Predictor:
    """The model of a run folder, without its training data.

    Args:
      folder: of a run, then `choice.predicting_method` says which method; or of one method in it.
      method: in place of the `predict.method` that the run was trained with.

    Raises:
      InputError: nothing has been trained there, or not that method.
    """
    folder = pathlib.Path(folder)
    root = folder.parent if (folder / "checkpoints").is_dir() else folder
    config = run_folder.read_config(root)
    if root == folder:
        named = method or config.get("predict", {}).get("method", "")
        try:
            method, why = predicting_method(named, config["methods"], trained_methods(root))
        except InputError as error:
            raise InputError(f"{root}: {error}") from error
    elif method and method != folder.name:
        raise InputError(f"{folder} is not the folder of {method}: give --workdir={root}.")
    else:
        method, why = folder.name, "its folder is the --workdir"
    weights, origin, temperature = trained_weights(root / method)
    source = f"{method} of {root} ({why}), {origin}"
    names = run_folder.read_class_names(root)
    labels = run_folder.read_labels(root)
    found = create_predictor(config, weights, names, source, temperature, method, labels)
    return dataclasses.replace(found, flip_axes=_flip_axes(config, method))


def _flip_axes(config, method):
    fields = config["augment"]["real"]
    mirrors = METHODS[method].augments and fields["flip"] > 0
    return tuple(fields["flip_axes"]) if mirrors else ()


def load_ensemble(folders: Sequence[str | pathlib.Path], method: str = "") -> Predictor:
    """The mean of the probabilities of several runs, such as the seeds of one experiment.

    Args:
      folders: as for `load_predictor`; of one, its model.
      method: likewise, of every run.

    Raises:
      InputError: as for `load_predictor`, or the runs differ in classes, threshold, or what their
        networks take.
    """
    members = [load_predictor(folder, method) for folder in folders]
    first = members[0]
    for member, folder in zip(members, folders, strict=True):
        for field in _AGREE:
            ours, theirs = getattr(first, field), getattr(member, field)
            if ours != theirs:
                raise InputError(
                    f"{folder} and {folders[0]} differ in {field} ({theirs} and {ours}): only runs that "
                    "agree in it can be averaged."
                )
    if len(members) == 1:
        return first
    return dataclasses.replace(
        first,
        predict_probabilities=lambda images: np.mean(
            [member.predict_probabilities(images) for member in members], axis=0
        ),
        source="the mean of " + "; ".join(member.source for member in members),
        segmenter=", ".join(dict.fromkeys(member.segmenter for member in members)),
        notice=" ".join(sorted({member.notice for member in members} - {""})),
        flip_axes=tuple(
            axis for axis in first.flip_axes if all(axis in m.flip_axes for m in members)
        ),
        network=lambda images: sum(m.network(images) for m in members) / len(members),
    )


def trained_weights(folder: pathlib.Path) -> tuple[Any, str, float]:
    """The weights that predict, of the checkpoints of one method, what they are, and their temperature.

    Raises:
      InputError: there is no complete checkpoint.
    """
    model, _ = checkpoint.load_model(folder / "checkpoints")
    return *segmenter_of(model), calibration.read_temperature(folder, int(model["step"]))


def segmenter_of(model: Mapping[str, Any]) -> tuple[Any, str]:
    """Likewise, of the item `model` of a checkpoint."""
    dice = float(model["dice"])  # below 0: stopped before the first validation, or there is none
    validated = "not validated yet" if dice < 0 else f"validation Dice {dice:.3f}"
    if dice == NONE_HELD_OUT:
        validated = "trained on all labelled images"
    origin = f"step {int(model['step'])}, {validated}"
    return model["players"]["segmenter"], origin


def trained_methods(root: pathlib.Path) -> list[str]:
    """The methods with a complete checkpoint; a killed run may have other folders too."""
    return [m for m in METHODS if checkpoint.has_checkpoint(root / m / "checkpoints")]
