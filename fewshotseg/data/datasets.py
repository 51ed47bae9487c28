"""Public data sets: prepared once from their official download, then read by random access.

Importing this module does not import TFDS, which takes a moment; using it does. TensorFlow is not
needed for anything here.
"""

import difflib
import importlib
import pathlib
from collections.abc import Mapping

import numpy as np

from fewshotseg.errors import InputError
from fewshotseg.types import Case

# name -> module and class in fewshotseg.data.builders
DATASETS = {
    "isic2017": "isic:Isic2017",
    "isic2018": "isic:Isic2018",
    "ph2": "ph2:Ph2",
    "kvasir_seg": "colonoscopy:KvasirSeg",
    "cvc_clinicdb": "colonoscopy:CvcClinicdb",
    "fuseg": "fuseg:Fuseg",
    "busi": "busi:Busi",
    "fetreg": "fetreg:Fetreg",
    "drive": "drive:Drive",
}


def create_builder(name: str, data_dir: str, source_dir: str | None = None):
    """The TFDS builder of a data set.

    Args:
      name: a key of `DATASETS`.
      data_dir: where prepared data sets live.
      source_dir: the official download; only needed to prepare.

    Raises:
      InputError: an unknown name.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(DATASETS)}."
        raise InputError(f"there is no data set {name!r}: {hint}")
    module, _, cls = DATASETS[name].partition(":")
    builder = getattr(importlib.import_module(f"fewshotseg.data.builders.{module}"), cls)
    folder = pathlib.Path(data_dir).expanduser()
    return builder(data_dir=str(folder), source_dir=source_dir)


def prepare(name: str, source_dir: str, data_dir: str) -> dict[str, int]:
    """Builds a data set; one that is there already is left as it is.

    Args:
      name: a key of `DATASETS`.
      source_dir: folder in which the official archives were unpacked.
      data_dir: where prepared data sets live; the data set gets a folder there.

    Returns:
      The number of cases per split, which is also printed.

    Raises:
      InputError: an unknown name, or whatever is wrong with the download.
    """
    builder = create_builder(name, data_dir, source_dir)
    if not builder.data_path.exists():
        builder.cases()
        try:
            builder.download_and_prepare()
        except Exception as error:  # TFDS wraps what the generator raises
            raise _cause(error) from error
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    listing = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{name}: {listing}, in {builder.data_path}\nCite: {builder.CITATION}")
    return counts


def _cause(error: BaseException) -> BaseException:
    """The `InputError` behind an error, or the error itself."""
    cause = error
    while cause is not None:
        if isinstance(cause, InputError):
            return InputError(str(cause).splitlines()[0])
        cause = cause.__cause__ or cause.__context__
    return error


class TfdsSource:
    """A `CaseSource` of a prepared data set.

    Args:
      name: a key of `DATASETS`.
      data_dir: where it was prepared.

    Raises:
      InputError: an unknown name, or the data set has not been prepared there.
    """

    def __init__(self, name: str, data_dir: str):
        import tensorflow_datasets as tfds

        builder = create_builder(name, data_dir)
        if not builder.data_path.exists():
            raise InputError(
                f"data set {name!r} has not been prepared in {data_dir}: run `python run.py "
                f"--mode=prepare --config=CONFIG --data_dir=FOLDER` once. {builder.DOWNLOAD}"
            )
        self.name = name
        self.class_names = builder.CLASS_NAMES
        skip = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
        self._positions, official, self._sources = {}, {}, {}
        for split in builder.info.splits:
            encoded = builder.as_data_source(split=split, decoders=skip)
            ids = [encoded[i]["id"].decode() for i in range(len(encoded))]
            self._positions.update({case_id: (split, i) for i, case_id in enumerate(ids)})
            self._sources[split] = builder.as_data_source(split=split)
            official[split] = tuple(sorted(ids))
        self.ids = tuple(sorted(self._positions))
        # A data set published in one piece has no official split.
        self.official_splits: Mapping[str, tuple[str, ...]] = official if len(official) > 1 else {}

    def load(self, case_id: str) -> Case:
        """Decodes one case.

        Raises:
          InputError: there is no such case.
        """
        if case_id not in self._positions:
            raise InputError(f"data set {self.name!r} has no case {case_id!r}.")
        split, position = self._positions[case_id]
        example = self._sources[split][position]
        return Case(
            id=case_id,
            image=np.asarray(example["image"]),
            mask=np.asarray(example["mask"])[..., 0],
            group=example["group"].decode(),
        )
