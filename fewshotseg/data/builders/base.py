"""What all builders share: from a list of files in an unpacked download to array_record files.

A builder says which image belongs to which masks; reading, checking and writing happen here. Built
without TensorFlow: TFDS hands arrays to TensorFlow for encoding, so images are given to it encoded;
and its `GeneratorBasedBuilder` shuffles through TensorFlow's files as soon as a split exceeds 1 GiB,
so shards are written one by one, in the order of the list (`ShardBasedBuilder`).

A JPEG or PNG image that needs no conversion is stored as it is, byte for byte (ISIC as PNG would be
several times as large); all else becomes PNG.
"""

import dataclasses
import functools
import io
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from fewshotseg import labels
from fewshotseg.data import image_files as transforms
from fewshotseg.data import mask_values
from fewshotseg.errors import InputError

UNSPLIT = "cases"  # TFDS split of data sets that are published without one
LISTED = 20  # faults in one message
CASES_PER_SHARD = 32  # held in memory, encoded, while a shard is written


@dataclasses.dataclass(frozen=True)
class Item:
    """One case of a download.

    Attributes:
      id: unique within the data set.
      image: its file.
      masks: its mask files, where they should be; several are joined.
      split: 'train', 'validation', 'test' as published, or `UNSPLIT`.
      group: patient or series; '' if unknown.
      inside: the file of its field of view, 0 outside, if there is one; what is outside counts nowhere.
    """

    id: str
    image: pathlib.Path
    masks: tuple[pathlib.Path, ...]
    split: str = UNSPLIT
    group: str = ""
    inside: pathlib.Path | None = None

    @property
    def drawn(self) -> tuple[pathlib.Path, ...]:
        """The files that go with the image."""
        return (*self.masks, self.inside) if self.inside else self.masks


class SegmentationBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of the builders. A subclass sets the attributes and writes `list_items`.

    Attributes:
      name: of the data set, as in `sources.tfds.DATASETS`.
      MANUAL_DOWNLOAD_INSTRUCTIONS: where to download what, and how to unpack it.
      class_names: the foreground classes; their ids are 1, 2, ... in this order.
      description: what is in it, and what a user should know of it.
      homepage: official address.
      citation: BibTeX.
      licence: as published, or what is not known about it.
      show_progress: whether building draws a bar on stderr.

    Features of an example: 'id', 'group' and 'notes' (text; one note a line), 'image' (uint8
    `[H, W, 3]`; stored grey if the file is grey) and 'mask' (uint8 `[H, W, 1]` of class ids, and of
    `labels.IGNORED` outside the field of view).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    class_names: tuple[str, ...] = ()
    description = homepage = citation = licence = ""
    show_progress = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(skip_registration=True, **kwargs)

    def list_items(self, source_dir: pathlib.Path) -> Sequence[Item]:
        """The cases below `source_dir`; empty if nothing of this data set is there."""
        raise NotImplementedError

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """'image' and 'mask' of an example."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        }

    def look(self, item: Item) -> None:
        """Raises an `InputError` where the header of an image and its masks do not fit."""
        self._read_mask(item, transforms.read_size(item.image))

    def example(self, item: Item) -> dict:
        """'notes', 'image' and 'mask' of an example."""
        image, notes = transforms.read_image(item.image)
        mask, mask_notes = self._read_mask(item, image.shape[:2])
        encoded = item.image.read_bytes()
        if notes or not _is_plain(encoded):
            encoded = _png(image)
        return {
            "notes": "\n".join(notes + mask_notes),
            "image": io.BytesIO(encoded),
            "mask": io.BytesIO(_png(mask[..., None])),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "notes": tfds.features.Text(),
                    **self.features(),
                }
            ),
            supervised_keys=("image", "mask"),
            homepage=self.homepage,
            citation=self.citation,
            license=self.licence,
            disable_shuffling=True,
            # 'ids': split -> ids in stored order, so that nobody needs to read images to list them.
            metadata=tfds.core.MetadataDict(class_names=list(self.class_names), ids={}),
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        with tqdm(desc=self.name, unit=" images", disable=not self.show_progress) as bar:
            self._bar = bar
            super()._download_and_prepare(dl_manager, download_config)

    def _shard_iterators_per_split(
        self, dl_manager
    ) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        items = self.checked_items(pathlib.Path(dl_manager.manual_dir))
        self._bar.reset(total=len(items))
        by_split = {}
        for item in items:
            by_split.setdefault(item.split, []).append(item)
        self.info.metadata["ids"] = {
            split: [item.id for item in part] for split, part in by_split.items()
        }
        return {
            split: [
                functools.partial(self._examples, part[start : start + CASES_PER_SHARD])
                for start in range(0, len(part), CASES_PER_SHARD)
            ]
            for split, part in by_split.items()
        }

    def checked_items(self, source_dir: pathlib.Path) -> list[Item]:
        """`list_items` in the order of the ids, headers of images and whole masks looked at.

        Raises:
          InputError: nothing found, or what is wrong with the files: all of it, so that nothing is
            written in vain. Damage behind a header is only found when the image is read.
        """
        items = sorted(self.list_items(source_dir), key=lambda item: item.id)
        if not items:
            raise InputError(
                f"{source_dir}: nothing of {self.name} was found in this folder. "
                f"{instructions_of(type(self))}"
            )
        faults = []
        lacking = [item for item in items if not all(mask.is_file() for mask in item.drawn)]
        if lacking:
            first = lacking[0]
            missing = next(mask for mask in first.drawn if not mask.is_file())
            faults.append(
                f"{first.image}: its mask {missing} is missing, as for {len(lacking)} of "
                f"{len(items)} images: unpack the masks completely, or remove those images."
            )
        case_id, number = Counter(item.id for item in items).most_common(1)[0]
        if number > 1:
            paths = [str(item.image) for item in items if item.id == case_id]
            faults.append(f"{paths[0]} and {paths[1]}: two images are called {case_id!r}.")
        label = f"{self.name}: looking at masks"
        for item in tqdm(items, label, leave=False, disable=not self.show_progress):
            if all(mask.is_file() for mask in item.drawn):
                try:
                    self.look(item)
                except InputError as error:
                    faults.append(str(error))
        if faults:
            number = f"{len(faults)} faults, and nothing was written. " if len(faults) > 1 else ""
            more = f" (and {len(faults) - LISTED} more)" if len(faults) > LISTED else ""
            raise InputError(number + " ".join(faults[:LISTED]) + more)
        return items

    def _read_mask(self, item: Item, size: tuple[int, int]):
        """Class ids and notes of one case's mask, of the size of its image."""
        raw = self._read_raw(item, item.masks, size)
        mask = mask_values.mask_to_class_ids(raw, len(self.class_names), item.masks[0])
        if item.inside:
            inside = self._read_raw(item, [item.inside], size)
            mask[mask_values.mask_to_class_ids(inside, 1, item.inside) == 0] = labels.IGNORED
        return mask, mask_values.mask_notes(raw, len(self.class_names))

    def _read_raw(self, item: Item, paths: Sequence[pathlib.Path], size: tuple[int, int]):
        raw = transforms.read_mask(paths, len(self.class_names))
        if raw.shape != size:
            raise InputError(
                f"{paths[0]}: the mask is {raw.shape[1]} x {raw.shape[0]} pixels, but its "
                f"image {item.image.name} is {size[1]} x {size[0]}: download both again."
            )
        return raw

    def _examples(self, items: Sequence[Item]) -> Iterator[tuple[str, dict]]:
        for item in items:
            yield item.id, {"id": item.id, "group": item.group, **self.example(item)}
            self._bar.update()


def instructions_of(builder: type[SegmentationBuilder]) -> str:
    """The download instructions in one line."""
    return " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())


def find_folder(source_dir: pathlib.Path, *candidates: str) -> pathlib.Path | None:
    """The first candidate ('Kvasir-SEG', 'CVC-ClinicDB/Original') that is a folder.

    It may lie in `source_dir`, or its first part may be `source_dir` itself.
    """
    source_dir = source_dir.absolute()
    for candidate in candidates:
        if (source_dir / candidate).is_dir():
            return source_dir / candidate
        first, _, rest = candidate.partition("/")
        if source_dir.name == first and (source_dir / rest).is_dir():
            return source_dir / rest
    return None


def image_files(
    folder: pathlib.Path, extensions: Sequence[str] = transforms.EXTENSIONS
) -> dict[str, pathlib.Path]:
    """Image files of one folder by stem, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    return {
        path.stem: path
        for path in sorted(folder.iterdir())
        if transforms.extension_of(path) in extensions and not path.name.startswith(".")
    }


def items_of_folders(
    images_folder: pathlib.Path,
    masks_folder: pathlib.Path,
    *,
    ending: str = "",
    extensions: Sequence[str] = transforms.EXTENSIONS,
    split: str = UNSPLIT,
    prefix: str = "",
    group: str = "",
) -> list[Item]:
    """Pairs `<stem>` in one folder with `<stem><ending>` in the other.

    Args:
      images_folder: may be missing: no items.
      masks_folder: likewise; then the items name masks that do not exist.
      ending: of the masks' stems.
      extensions: of the images.
      split: of all these items.
      prefix: put before the stems to make the ids.
      group: of all these items.
    """
    masks = image_files(masks_folder)
    items = []
    for stem, path in image_files(images_folder, extensions).items():
        mask = masks.get(stem + ending, masks_folder / f"{stem}{ending}.png")
        items.append(Item(prefix + stem, path, (mask,), split, group))
    return items


def _is_plain(encoded: bytes) -> bool:
    with Image.open(io.BytesIO(encoded)) as image:
        return image.format in ("JPEG", "PNG") and image.mode in ("L", "RGB")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)  # 6: 3x the time, 1 % smaller
    return buffer.getvalue()
