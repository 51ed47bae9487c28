"""From a configuration to the cases of an experiment: the data's part of `build`."""

from typing import Any

from fewshotseg import errors
from fewshotseg.data import cases
from fewshotseg.data import tiles as tiling
from fewshotseg.data.split_files import Split
from fewshotseg.data.survey import Survey
from fewshotseg.types import CaseSource


def create_source(fields, strict: bool = True) -> CaseSource:
    """The source that a `source_config()` of configs/default.py names."""
    block = dict(fields.get(fields.source, {}))
    if fields.source == "tfds" and cases.spatial_axes("tfds", block) == 3:
        block |= {name: tuple(fields.volumes[name]) for name in ("window", "percentiles")}
    return cases.create_source(fields.source, block, strict)


def create_tiles(config) -> tiling.Tiles | None:
    """How networks see cases in tiles; None where cases are squashed to a canvas."""
    return tiling.create(config.data)


def create_test_sources(config) -> dict[str, CaseSource]:
    """The further test sets by name."""
    sources = {name: create_source(fields) for name, fields in config.test_sets.items()}
    folder = config.data.folder
    more = cases.create_test_folders(
        config.test_folders,
        tuple(folder.class_names),
        folder.mask_pattern,
        class_ids=folder.class_ids,
        ignore_id=folder.ignore_id,
    )
    if twice := sources.keys() & more.keys():
        raise errors.InputError(f"test_folders and test_sets both have {min(twice)!r}: rename one.")
    return sources | more


def create_split(config, survey: Survey) -> Split:
    """The split that training makes of a source."""
    return cases.create_split(survey, test_sources=create_test_sources(config), **_draw(config))


def create_data(config) -> cases.Data:
    """Source, split, arrays and test sets of an experiment.

    Raises:
      InputError: whatever is wrong with the data.
    """
    return cases.create_data(
        create_source(config.data),
        image_size=config.data.image_size,
        channels=config.data.channels,
        test_sources=create_test_sources(config),
        tiles=create_tiles(config),
        **_draw(config),
    )


def _draw(config) -> dict[str, Any]:
    names = (
        *("num_train", "num_validation", "num_test", "validate"),
        *("split_file", "fold", "look_alike"),
    )
    return {"seed": config.seed, **{name: config.data[name] for name in names}}
