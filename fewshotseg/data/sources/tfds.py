"""The public data sets by name: preparing them once, then reading them case by case.

Preparing turns an official download into array_record files (see `builders.base`). It is atomic:
TFDS writes into a folder beside the final one and renames it at the end, so that what is there is
complete, and what was interrupted is started again.
"""

import contextlib
import difflib
import importlib
import io
import os
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from fewshotseg.data import label_files, split_files, volume_files
from fewshotseg.errors import InputError
from fewshotseg.types import Case

Path = str | os.PathLike[str]

# Name -> module below `builders` and class in it; imported when needed, since TFDS is slow to load.
DATASETS: Mapping[str, tuple[str, str]] = {
    "busi": ("busi", "Busi"),
    "busi_with_normal": ("busi", "BusiWithNormal"),
    "cvc_clinicdb": ("cvc_clinicdb", "CvcClinicDb"),
    "drive": ("drive", "Drive"),
    "fetreg": ("fetreg", "Fetreg"),
    "fuseg": ("fuseg", "Fuseg"),
    "isic2017": ("isic2017", "Isic2017"),
    "isic2018": ("isic2018", "Isic2018"),
    "kvasir_seg": ("kvasir_seg", "KvasirSeg"),
    "msd_hippocampus": ("volumes", "MsdHippocampus"),
    "msd_liver": ("volumes", "MsdLiver"),
    "ph2": ("ph2", "Ph2"),
}
VOLUMES = ("msd_hippocampus", "msd_liver")  # all others are pictures
_OFFICIAL = ("train", "validation", "test")


def builder_class(name: str):
    """The `builders.base.SegmentationBuilder` of a data set.

    Raises:
      InputError: unknown name; the message has the closest one.
    """
    if name not in DATASETS:
        closest = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        hint = f"did you mean {closest[0]!r}? All" if closest else "all"
        raise InputError(f"unknown data set {name!r}: {hint} names: {', '.join(DATASETS)}.")
    module, class_name = DATASETS[name]
    return getattr(importlib.import_module(f"fewshotseg.data.builders.{module}"), class_name)


def prepare(name: str, source_dir: Path, data_dir: Path, progress: bool = True) -> dict[str, int]:
    """Builds a data set from its official download, or finds it built.

    Args:
      name: a key of `DATASETS`.
      source_dir: folder with the unpacked download, as the builder's instructions say.
      data_dir: where prepared data sets are kept; the images are copied into it.
      progress: show a bar, and print what was built.

    Returns:
      Number of cases per split.

    Raises:
      InputError: unknown name, missing folder or files, unreadable images, no place to write.
    """
    builder_cls = builder_class(name)
    data_dir = pathlib.Path(data_dir).expanduser()
    source_dir = pathlib.Path(source_dir).expanduser()
    builder = _create_builder(builder_cls, data_dir)
    say = print if progress else lambda text: None
    if _is_built(builder):
        say(f"{name} is prepared already; delete {builder.data_path} to build it again.")
    else:
        if not source_dir.is_dir() or not any(source_dir.iterdir()):
            problem = "the folder is empty" if source_dir.is_dir() else "there is no such folder"
            instructions = " ".join(builder_cls.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
            raise InputError(f"{source_dir}: {problem}. {instructions}")
        builder.show_progress = progress
        _build(builder, source_dir)
        say(f"Prepared {name} in {builder.data_path}. Licence: {builder.licence}")
    counts = {split: len(ids) for split, ids in builder.info.metadata["ids"].items()}
    say("Cases: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    return counts


def _create_builder(builder_cls, data_dir: pathlib.Path):
    try:
        return builder_cls(data_dir=data_dir, file_format="array_record")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{data_dir / builder_cls.name}: the prepared data set is damaged: delete this folder and "
            "prepare it again."
        ) from error


def _is_built(builder) -> bool:
    folder = pathlib.Path(builder.data_path)
    if folder.is_dir() and not builder.info.metadata["ids"]:
        raise InputError(
            f"{folder}: the prepared data set is damaged (no list of its cases): delete this folder "
            "and prepare it again."
        )
    return folder.is_dir()


def _build(builder, source_dir: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    for remainder in pathlib.Path(builder.data_path).parent.glob("incomplete.*"):
        shutil.rmtree(remainder, ignore_errors=True)  # of a build that was killed
    config = tfds.download.DownloadConfig(manual_dir=source_dir, try_download_gcs=False)
    # TFDS prints that it downloads, which it does not, and insists on a folder for that.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(download_dir=unused, download_config=config)
        except OSError as error:
            raise InputError(
                f"{builder.data_path}: the prepared data cannot be written ({error}): free some "
                "space, or choose another folder."
            ) from error


class TfdsSource:
    """A `CaseSource` that reads a prepared data set in any order.

    Construction reads a small file of ids; images are read and decoded by `load`, at their original
    size.

    Args:
      name: a key of `DATASETS`.
      data_dir: as given to `prepare`.
      window: of volumes, see `volume_files.GreyValues`.
      percentiles: likewise.

    Raises:
      InputError: unknown or not yet prepared; the message is the command that prepares it.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        window: Sequence[float] = (0.0, 0.0),
        percentiles: Sequence[float] = (0.5, 99.5),
    ):
        self._grey = volume_files.GreyValues(tuple(window), tuple(percentiles))
        builder_cls = builder_class(name)
        data_dir = pathlib.Path(data_dir).expanduser()
        builder = _create_builder(builder_cls, data_dir)
        if not _is_built(builder):
            raise InputError(
                f"data set {name!r} is not prepared in {data_dir}. Download it from "
                f"{builder_cls.homepage} and run: {prepare_command(name, data_dir)}"
            )
        import tensorflow_datasets as tfds

        self.name = name
        self.class_names: tuple[str, ...] = tuple(builder.info.metadata["class_names"])
        stored = builder.info.metadata["ids"]
        self._places = {
            case_id: (split, index)
            for split, ids in stored.items()
            for index, case_id in enumerate(ids)
        }
        self.ids: tuple[str, ...] = tuple(sorted(self._places))
        self.official_splits: Mapping[str, tuple[str, ...]] = {
            split: tuple(sorted(stored[split])) for split in _OFFICIAL if split in stored
        }
        # Decoded here and not by TFDS, which would make three channels of a grey image.
        skip = tfds.decode.SkipDecoding()
        self._records = builder.as_data_source(decoders={"image": skip, "mask": skip})
        self._data_path = builder.data_path

    def load(self, case_id: str) -> Case:
        """Reads one case.

        Raises:
          InputError: unknown id, or a damaged file.
        """
        if case_id not in self._places:
            split_files.resolve_ids([case_id], self.ids, f"data set {self.name!r}")
        split, index = self._places[case_id]
        try:
            example = self._records[split][index]
            stored_id = example["id"].decode()
            if self.name not in VOLUMES:
                image, mask = _decode(example["image"]), _decode(example["mask"])[..., 0]
        except Exception as error:  # array_record raises whatever its C++ side reports
            raise InputError(
                f"{self._data_path}: case {case_id!r} cannot be read: delete this folder and prepare "
                "the data set again."
            ) from error
        if stored_id != case_id:
            raise InputError(
                f"{self._data_path}: holds {stored_id!r} in the place of {case_id!r}: delete this "
                "folder and prepare the data set again."
            )
        if self.name in VOLUMES:
            return self._volume(example, case_id)
        notes = tuple(example["notes"].decode().splitlines())
        return Case(case_id, image, mask, example["group"].decode(), notes)

    def _volume(self, example: Mapping[str, bytes], case_id: str) -> Case:
        path = pathlib.Path(self._data_path, f"{case_id}.nii.gz")  # to name in messages
        volume = volume_files.read_volume(path, example["image"])
        return Case(
            id=case_id,
            image=self._grey(volume.values)[..., None],
            mask=label_files.read_labels(path, volume, self.class_names, data=example["mask"]),
            spacing=volume.spacing,
            affine=volume.affine,
        )


def prepare_command(name: str, data_dir: Path) -> str:
    """What to type to prepare a data set; DOWNLOADS stands for the folder with the download."""
    command = ["python", "run.py", "--mode=prepare", f"--config=configs/public.py:{name}"]
    command += [f"--config.data.tfds.data_dir={os.fspath(data_dir)}", "--data_dir=DOWNLOADS"]
    return shlex.join(command)


def _decode(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
