"""What all builders share: from files in the official layout to array_record, without TensorFlow.

A builder only lists its cases; reading, checking and encoding happen here. TFDS writes into a folder
named `incomplete...` and renames it at the end, so an interrupted build is not mistaken for a data set.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fewshotseg.data import transforms
from fewshotseg.errors import InputError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """One case: its official split, its image, its masks (joined by or), its patient or series."""

    id: str
    split: str
    image: pathlib.Path
    masks: tuple[pathlib.Path, ...]
    group: str = ""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set of images and masks; subclasses fill in the constants and `list_cases`.

    Args:
      source_dir: folder in which the official archives were unpacked; needed to build, not to read.
      data_dir: where the prepared data set lives.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    CLASS_NAMES: tuple[str, ...] = ("foreground",)
    CHANNELS = 3
    DESCRIPTION = ""
    HOMEPAGE = ""
    LICENCE = ""
    CITATION = ""
    DOWNLOAD = ""  # where to get it, and what the source folder must hold
    pkg_dir_path = pathlib.Path(__file__).parent

    def __init__(self, *, source_dir: str | None = None, data_dir: str, **kwargs):
        self._source_dir = None if source_dir is None else pathlib.Path(source_dir)
        super().__init__(data_dir=data_dir, file_format="array_record", **kwargs)

    def list_cases(self, root: pathlib.Path) -> Iterable[CaseFiles]:
        """The cases found below `root`, in the official layout."""
        raise NotImplementedError

    def cases(self) -> list[CaseFiles]:
        """All cases of the source folder, checked.

        Raises:
          InputError: the folder is missing, holds nothing of this data set, or a mask is missing.
        """
        if self._source_dir is None or not self._source_dir.is_dir():
            raise InputError(f"{self._source_dir} is not a folder. {self.DOWNLOAD}")
        found = sorted(self.list_cases(self._source_dir), key=lambda case: case.id)
        if not found:
            raise InputError(f"{self._source_dir} holds no case of {self.name}. {self.DOWNLOAD}")
        for case in found:
            if not case.masks:
                raise InputError(
                    f"{case.image} has no mask: unpack the masks as well. {self.DOWNLOAD}"
                )
        return found

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            license=self.LICENCE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, self.CHANNELS)),
                    "mask": tfds.features.Image(shape=(None, None, 1)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        cases = self.cases()
        splits = sorted({case.split for case in cases})
        return {s: self._generate_examples([c for c in cases if c.split == s]) for s in splits}

    def _generate_examples(self, cases: list[CaseFiles]) -> Iterator[tuple[str, dict]]:
        for case in cases:
            image, _ = transforms.read_image(case.image)
            raw = transforms.read_mask(list(case.masks))
            if raw.shape != image.shape[:2]:
                raise InputError(
                    f"{case.masks[0]} is {raw.shape[1]} x {raw.shape[0]} pixels, but {case.image} is "
                    f"{image.shape[1]} x {image.shape[0]}: download both again."
                )
            mask = transforms.mask_to_class_ids(raw, len(self.CLASS_NAMES), case.masks[0])
            yield (
                case.id,
                {
                    "id": case.id,
                    "group": case.group,
                    "image": _png(image, self.CHANNELS),
                    "mask": _png(mask, 1),
                },
            )


def _png(array: np.ndarray, channels: int) -> io.BytesIO:
    """Encoded here, because TFDS would use TensorFlow for it."""
    image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    stream = io.BytesIO()
    image.convert("L" if channels == 1 else "RGB").save(stream, "PNG")
    stream.seek(0)
    return stream


def find(folder: pathlib.Path, stem: str) -> tuple[pathlib.Path, ...]:
    """The image file `folder/stem.*`, if there is one."""
    paths = (folder / f"{stem}{extension}" for extension in EXTENSIONS)
    return tuple(path for path in paths if path.exists())[:1]


def images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
