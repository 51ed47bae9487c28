"""The cases of an experiment, from its configuration: source, split, arrays."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from fewshotseg import errors
from fewshotseg.data import batches as input_pipeline
from fewshotseg.data import split_files, splits
from fewshotseg.data.sources import folder, phantom
from fewshotseg.types import CaseSource

TEST_FRACTION = 0.2  # of the cases, where nothing else says which ones test


@dataclasses.dataclass(frozen=True)
class Data:
    """The cases of an experiment.

    Attributes:
      source: where they come from.
      split: ids of the training, validation and test cases.
      train: arrays of the training cases, see `input_pipeline.load_arrays`.
      validation: likewise.
      test_sets: name -> (source, ids).
    """

    source: CaseSource
    split: split_files.Split
    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    test_sets: Mapping[str, tuple[CaseSource, tuple[str, ...]]]

    @property
    def num_classes(self) -> int:
        """Background included."""
        return len(self.source.class_names) + 1


def create_source(config, strict: bool = True) -> CaseSource:
    """The source that `config.source` names.

    Args:
      config: a `source_config()` of configs/default.py.
      strict: raise the first fault of a folder; otherwise it is kept in the source's `faults`.

    Raises:
      InputError: an unknown source, or whatever is wrong with its files.
    """
    if config.source == "phantom":
        return phantom.PhantomSource(**config.phantom.to_dict())
    if config.source == "folder":
        fields = config.folder.to_dict()
        for field in ("images_dir", "masks_dir"):
            if not fields[field]:
                raise errors.InputError(
                    f"data.folder.{field} is empty: give --config.data.folder.{field}=FOLDER."
                )
            fields[field] = fields[field].split(",")
        fields["include"] = fields["include"] or None
        fields["group_pattern"] = fields["group_pattern"] or None
        return folder.FolderSource(**fields, strict=strict)
    if config.source == "tfds":
        from fewshotseg.data.sources import tfds as datasets  # slow to import

        return datasets.TfdsSource(**config.tfds.to_dict())
    raise errors.InputError(f"data.source is {config.source!r}: use 'phantom', 'folder' or 'tfds'.")


def create_split(config, source: CaseSource) -> split_files.Split:
    """Few-shot split of the seed, or the lists of `data.split_file`."""
    fields = config.data
    lists = fields.split_file or None
    draw = functools.partial(
        splits.few_shot_split,
        source,
        seed=config.seed,
        lists=lists,
        test_fraction=TEST_FRACTION,
    )
    if fields.num_train:
        split = draw(num_train=fields.num_train, num_validation=fields.num_validation)
    else:
        split = _draw_all(draw, source, lists)
    if fields.num_test:
        split = dataclasses.replace(split, test=spread(split.test, fields.num_test))
    return split


def spread(ids: tuple[str, ...], number: int) -> tuple[str, ...]:
    """At most `number` of `ids`, evenly spaced: the first ones may all be of one kind."""
    number = min(number, len(ids))
    return tuple(ids[i * len(ids) // number] for i in range(number))


def _draw_all(draw, source, lists, tries=5):
    """Takes as many labelled cases as there are; look-alikes of test cases may reduce the number."""
    if lists:
        raise errors.InputError("data.num_train is 0: with data.split_file, give numbers.")
    free = len(source.ids) - round(TEST_FRACTION * len(source.ids))
    for left in range(tries, 0, -1):
        num_validation = max(1, free // 5)
        try:
            return draw(num_train=free - num_validation, num_validation=num_validation)
        except errors.InputError:
            if left == 1:
                raise
        free = free - max(1, free // 10)


def create_data(config) -> Data:
    """Draws the few-shot split and loads the training and validation cases."""
    source = create_source(config.data)
    split = create_split(config, source)
    size, channels = config.data.image_size, config.data.channels
    train = input_pipeline.load_arrays(source, split.train, size, channels)
    validation = input_pipeline.load_arrays(source, split.validation, size, channels)
    if not train["mask"].any():
        raise errors.InputError(
            f"none of the {len(split.train)} training masks of {source.name} has any foreground: "
            "check the masks with --mode=check."
        )
    test_sets = {"test": (source, split.test)}
    for name, test_config in config.test_sets.items():
        test_source = create_source(test_config)
        ids = test_source.official_splits.get("test", test_source.ids)
        test_sets[name] = (test_source, tuple(ids))
    return Data(source, split, train, validation, test_sets)
