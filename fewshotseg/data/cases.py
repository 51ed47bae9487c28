"""The cases of an experiment: where they come from, which side they are on, and their arrays."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fewshotseg import errors, labels
from fewshotseg.data import batches, canvas, nnunet_folds, split_files, splits
from fewshotseg.data.look_alikes import DUPLICATE_CORRELATION
from fewshotseg.data.sources import folder, phantom, tfds, volumes
from fewshotseg.data.survey import Survey
from fewshotseg.data.tiles import Tiles
from fewshotseg.types import CaseSource

VALIDATE = ("held_out", "none")  # whether some labelled cases are kept from the training
TEST_FRACTION = 0.2  # of the cases, where nothing else says which ones test


@dataclasses.dataclass(frozen=True)
class Data:
    """The cases of an experiment.

    Attributes:
      source: where they come from.
      split: ids of the training, validation and test cases.
      train: arrays of the training cases, see `batches.load_arrays`.
      validation: likewise; {} where none are held out.
      test_sets: name -> (source, ids); the own one is called 'test'.
      survey: what was seen of the source's cases.
      tiles: how networks see cases, if not squashed to a canvas.
    """

    source: CaseSource
    split: split_files.Split
    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    test_sets: Mapping[str, tuple[CaseSource, tuple[str, ...]]]
    survey: Survey
    tiles: Tiles | None = None

    @property
    def num_classes(self) -> int:
        """Background included."""
        return len(self.source.class_names) + 1

    @property
    def labelled(self) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        """Ids and arrays of the training cases and, after them, of those held out."""
        parts = [part for part in (self.train, self.validation) if part]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in self.train}
        return (*self.split.train, *self.split.validation), arrays


def _phantom(fields: Mapping[str, Any], strict: bool) -> CaseSource:
    del strict  # nothing can be wrong with its files
    return phantom.PhantomSource(**fields)


def _folder(fields: Mapping[str, Any], strict: bool) -> CaseSource:
    fields = dict(fields)
    if not fields["pairs_csv"]:
        for field in ("images_dir", "masks_dir"):
            if not fields[field]:
                raise errors.InputError(
                    f"data.folder.{field} is empty: give --config.data.folder.{field}=FOLDER."
                )
            fields[field] = fields[field].split(",")
    for field in ("pairs_csv", "include", "group_pattern"):
        fields[field] = fields[field] or None
    return folder.FolderSource(**fields, strict=strict)


def _tfds(fields: Mapping[str, Any], strict: bool) -> CaseSource:
    del strict  # prepared data has been checked
    return tfds.TfdsSource(**fields)


def _volumes(fields: Mapping[str, Any], strict: bool) -> CaseSource:
    return volumes.VolumeSource(**fields, strict=strict)


# Name -> maker from the fields of the block of that name.
SOURCES: Mapping[str, Callable[[Mapping[str, Any], bool], CaseSource]] = {
    "phantom": _phantom,
    "folder": _folder,
    "tfds": _tfds,
    "volumes": _volumes,
}


def spatial_axes(name: str, fields: Mapping[str, Any]) -> int:
    """Of a source's cases: 2 of pictures, 3 of volumes.

    Args:
      name: a key of `SOURCES`.
      fields: of its block.
    """
    return 3 if name == "volumes" or (name == "tfds" and fields["name"] in tfds.VOLUMES) else 2


def create_source(name: str, fields: Mapping[str, Any], strict: bool = True) -> CaseSource:
    """A source of cases.

    Args:
      name: a key of `SOURCES`.
      fields: of the block of that name in configs/default.py.
      strict: raise the first fault of a folder; otherwise all are kept in the source's `faults`.

    Raises:
      InputError: an unknown source, or whatever is wrong with its files.
    """
    if name not in SOURCES:
        raise errors.InputError(f"data.source is {name!r}: use one of {', '.join(SOURCES)}.")
    return SOURCES[name](fields, strict)


def create_test_folders(
    places: str, class_names: tuple[str, ...], mask_pattern: str = "", **labels: Any
) -> dict[str, CaseSource]:
    """Further test sets by name, from one line.

    Args:
      places: 'NAME=PLACE', several joined by ','. A PLACE is a folder that holds images and masks,
        or IMAGES_FOLDER:MASKS_FOLDER, or a table of pairs (.csv).
      class_names: as of the training data.
      mask_pattern: likewise.
      **labels: `class_ids` and `ignore_id`, likewise.

    Raises:
      InputError: a line of another form, or whatever is wrong with the files.
    """
    sources: dict[str, CaseSource] = {}
    for entry in filter(None, places.split(",")):
        name, found, place = entry.partition("=")
        name = name.strip()
        if not found or not place or not re.fullmatch(r"[\w-]+", name) or name in sources:
            raise errors.InputError(
                f"test_folders has {entry!r}: write NAME=FOLDER, NAME=IMAGES:MASKS or "
                "NAME=PAIRS.csv, each NAME once and of letters and digits."
            )
        if place.lower().endswith(".csv"):
            where = {"pairs_csv": place}
        else:
            images, _, masks = place.partition(":")
            where = {"images_dir": images, "masks_dir": masks or images}
        sources[name] = folder.FolderSource(
            **where,
            class_names=class_names,
            name=name,
            mask_pattern=mask_pattern,
            minimum_cases=1,
            **labels,
        )
    return sources


def create_split(
    survey: Survey,
    *,
    num_train: int,
    num_validation: int,
    seed: int,
    validate: str = "held_out",
    num_test: int = 0,
    split_file: str = "",
    fold: int = 0,
    look_alike: float = DUPLICATE_CORRELATION,
    test_sources: Mapping[str, CaseSource] | None = None,
) -> split_files.Split:
    """Few-shot split of the seed, or the lists of a file; see `splits.few_shot_split`.

    Args:
      survey: of the source.
      num_train: training cases; 0 (with `num_validation` 0) for as many as there are, a fifth of
        them to validate.
      num_validation: validation cases.
      seed: of the draw.
      validate: one of `VALIDATE`; 'none': the validation cases are drawn likewise and train, too.
      num_test: at most so many test cases, evenly spaced; 0 for all.
      split_file: lists of ids, or nnU-Net's list of folds; '' for none.
      fold: which one of these.
      look_alike: correlation of thumbnails from which two images stay on one side.
      test_sources: further test sets by name.

    Raises:
      InputError: not enough cases, bad lists, none to validate, or a further test set with other classes.
    """
    source, lists = survey.source, split_file or None
    hold_out = validate == "held_out"
    if split_file:
        lists = nnunet_folds.read(split_file, fold, source.ids) or lists
    draw = functools.partial(
        splits.few_shot_split,
        source,
        seed=seed,
        lists=lists,
        test_fraction=TEST_FRACTION,
        threshold=look_alike,
        survey=survey,
        hold_out=hold_out,
        further={
            name: (Survey(other, survey.size, survey.tiles), _test_ids(name, other, source))
            for name, other in (test_sources or {}).items()
        },
    )
    if num_train:
        split = draw(num_train=num_train, num_validation=num_validation)
    else:
        split = _draw_all(draw, source, lists, hold_out)
    if hold_out and not split.validation:
        raise errors.InputError(
            f"{split_file or source.name} leaves no case to validate: list some under 'validation', or set "
            "data.validate='none'."
        )
    return _limit_test(split, num_test) if num_test else split


def create_data(
    source: CaseSource,
    *,
    image_size: canvas.Size,
    channels: int,
    test_sources: Mapping[str, CaseSource] | None = None,
    tiles: Tiles | None = None,
    **draw: Any,
) -> Data:
    """Draws the few-shot split and loads the training and validation cases.

    Args:
      source: of the cases.
      image_size: of the networks, in pixels.
      channels: 1 or 3.
      test_sources: further test sets by name.
      tiles: how networks see cases, if not squashed to a canvas.
      **draw: what else `create_split` takes.

    Raises:
      InputError: not enough cases, bad lists, no foreground, or a case that cannot be read.
    """
    survey, test_sources = Survey(source, image_size, tiles), test_sources or {}
    split = create_split(survey, test_sources=test_sources, **draw)
    train, validation = (
        batches.load_arrays(source, ids, image_size, channels, tiles) if ids else {}
        for ids in (split.train, split.validation)
    )
    if not labels.is_foreground(train["mask"]).any():
        raise errors.InputError(
            f"none of the {len(split.train)} training masks of {source.name} has any foreground: "
            "check the masks with --mode=check."
        )
    test_sets = {"test": (source, split.test)}
    for name, other in test_sources.items():
        test_sets[name] = (other, _test_ids(name, other, source))
    return Data(source, split, train, validation, test_sets, survey, tiles)


def spread(ids: tuple[str, ...], number: int) -> tuple[str, ...]:
    """At most `number` of `ids`, evenly spaced: the first ones may all be of one kind."""
    number = min(number, len(ids))
    return tuple(ids[i * len(ids) // number] for i in range(number))


def _limit_test(split: split_files.Split, number: int) -> split_files.Split:
    test = spread(split.test, number)
    kept = {
        field: {
            part: {i: value for i, value in of_part.items() if part != "test" or i in set(test)}
            for part, of_part in getattr(split, field).items()
        }
        for field in ("clusters", "groups")
    }
    return dataclasses.replace(split, test=test, **kept)


def _test_ids(name: str, source: CaseSource, ours: CaseSource) -> tuple[str, ...]:
    if name == "test":
        raise errors.InputError("a further test set is called 'test': give it another name.")
    if len(source.class_names) != len(ours.class_names):
        raise errors.InputError(
            f"the test set {name} has the classes {', '.join(source.class_names)}, but "
            f"{ours.name} has {', '.join(ours.class_names)}: test on the same classes."
        )
    return tuple(source.official_splits.get("test", source.ids))


def _draw_all(draw, source, lists, hold_out, tries=5):
    """Takes as many labelled cases as there are; look-alikes of test cases may reduce the number."""
    if isinstance(lists, Mapping):  # a fold
        free = len(lists["pool"])
    elif lists:
        if {"train", "validation"} <= split_files.read_lists(lists, source.ids).keys():
            return draw(num_train=0, num_validation=0)  # nothing is drawn
        raise errors.InputError(
            "data.num_train is 0: with data.split_file, give numbers, or list both 'train' and "
            "'validation'."
        )
    else:
        free = len(source.ids) - round(TEST_FRACTION * len(source.ids))
    for left in range(tries, 0, -1):
        num_validation = max(1, free // 5) if hold_out else 0
        try:
            return draw(num_train=free - num_validation, num_validation=num_validation)
        except errors.InputError:
            if left == 1:
                raise
        free = free - max(1, free // 10)
