"""Which mask files belong to which image file, by their names alone.

An image's id is its path relative to the image folder, without extension. A mask belongs to the
image whose id it has; else to the one whose name is left when the usual words are taken off:

    a.png              a_mask.png, a_segmentation.png, a-gt.png ...    MASK_WORDS behind or before
    7.png              mask_7.png
    a.png              a_mask.png, a_mask_1.png, a_mask_2.png          parts of one mask, joined
    case_0000.png      case.png                                        nnU-Net
    21_training.tif    21_manual1.gif                                  DRIVE
    a_img.png          a_masks.png                                     Cellpose
    case1/image.png    case1/mask.png                                  a folder per case; id 'case1'

Where images and masks lie below one folder, folders called as `MASK_FOLDERS` hold masks
(`train/images/7.png` and `train/Ground Truth/7.png` are image and mask of 'train/7'); elsewhere the
name of a file says what it is. Nothing is guessed: what fits two images, or two kinds of masks of
one image, is a fault, for which a pattern or a table of pairs is the remedy.
"""

import dataclasses
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from fewshotseg.data import image_files, walk
from fewshotseg.errors import InputError

IMAGE_WORDS = ("image", "img", "training", "test", "0000")
MASK_WORDS = (
    "mask", "masks", "cp_masks", "segmentation", "segmentations", "seg", "label", "labels", "gt",
    "ground_truth", "groundtruth", "lesion", "annotation", "manual1", "1stHO",
)  # fmt: skip
IMAGE_FOLDERS = {"image", "images", "img", "imgs", "imagestr", "original"}
MASK_FOLDERS = {
    "mask", "masks", "label", "labels", "labelstr", "gt", "groundtruth", "segmentation",
    "segmentations", "annotation", "annotations", "manual", "1stmanual",
}  # fmt: skip
# Files that archives keep beside them: superpixels, and drawings of a second observer.
COMPANIONS = ("_superpixels", "_manual2", "_2ndHO", "_flows")
REMEDY = "give data.folder.mask_pattern (such as '{stem}_mask') or data.folder.pairs_csv"


def _words(words: Iterable[str]) -> str:
    return "|".join(sorted((word.replace("_", "[ _-]?") for word in words), key=len, reverse=True))


_MASK_ENDING = re.compile(
    rf"(?P<base>.+?)[ _-](?P<kind>{_words(MASK_WORDS)})(?:[ _-]?\d+)?", re.IGNORECASE
)
_MASK_START = re.compile(rf"(?P<kind>{_words(MASK_WORDS)})[ _-](?P<base>.+)", re.IGNORECASE)
_IMAGE_ENDING = re.compile(rf"(?P<base>.+?)[ _-](?:{_words(IMAGE_WORDS)})", re.IGNORECASE)
_IMAGE_START = re.compile(r"(?:image|img)[ _-](?P<base>.+)", re.IGNORECASE)
_MASK_ALONE = re.compile(rf"(?P<kind>{_words(MASK_WORDS)})(?:[ _-]?\d+)?", re.IGNORECASE)
_IMAGE_ALONE = re.compile(r"image|img", re.IGNORECASE)


KINDS = ("format", "same id", "ambiguous", "table", "missing", "orphan")  # in order of urgency


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with one file; `kind` is one of `KINDS`."""

    kind: str
    path: pathlib.Path
    message: str


@dataclasses.dataclass
class Pairs:
    """Images and their masks by id, groups where a table gives them, and what did not fit."""

    images: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    masks: dict[str, tuple[pathlib.Path, ...]] = dataclasses.field(default_factory=dict)
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: list[Fault] = dataclasses.field(default_factory=list)

    def add(self, other: "Pairs") -> None:
        """Takes over all of `other`; an id that is there already is a fault."""
        for case_id in sorted(self.images.keys() & other.images.keys()):
            self.faults.append(same_id(case_id, self.images[case_id], other.images[case_id]))
        self.images, self.masks = other.images | self.images, other.masks | self.masks
        self.groups = other.groups | self.groups
        self.faults += other.faults


def pair_folders(
    images_dir: pathlib.Path, masks_dir: pathlib.Path, mask_pattern: str = ""
) -> Pairs:
    """Pairs the image files of two folders, or of one that is given twice, with their subfolders.

    Args:
      images_dir: folder of the images.
      masks_dir: folder of the masks.
      mask_pattern: names of the masks, without extension, in place of all rules: '{stem}' stands
        for the image's name (or what is left of it without the usual words), '*' for anything.

    Raises:
      InputError: a folder that is missing, empty or may not be read; a pattern without '{stem}'.
    """
    pattern = _compile(mask_pattern)
    found, together = Pairs(), images_dir.resolve() == masks_dir.resolve()
    image_paths = _files(images_dir, () if together else (masks_dir,), found.faults)
    if together:
        image_paths, candidates = _divide(images_dir, image_paths, pattern)
    else:
        mask_paths = _files(masks_dir, (images_dir,), found.faults)
        candidates = [(_id(masks_dir, path), path) for path in mask_paths]
        image_paths = [(_id(images_dir, path), path) for path in image_paths]
    for case_id, path in image_paths:
        folder, _, stem = case_id.rpartition("/")
        if folder and _IMAGE_ALONE.fullmatch(stem):
            case_id = folder
        if case_id in found.images:
            found.faults.append(same_id(case_id, found.images[case_id], path))
        found.images.setdefault(case_id, path)
    for folder, files, kind in (
        (images_dir, image_paths, "images"),
        (masks_dir, candidates, "masks"),
    ):
        if not files and not any(fault.kind == "format" for fault in found.faults):
            extensions = " ".join(image_files.EXTENSIONS)
            raise InputError(f"{folder}: no {kind} found; files with {extensions} are read.")
    _assign(found, candidates, pattern)
    return found


def is_mask_of(path: pathlib.Path, images: set[pathlib.Path]) -> bool:
    """Whether `path` is named as a mask of one of `images`, paths without extension."""
    return any(path.with_name(base) in images for base, _ in _mask_bases(path.stem) if base)


def _compile(mask_pattern: str) -> re.Pattern | None:
    if not mask_pattern:
        return None
    if mask_pattern.count("{stem}") != 1:
        raise InputError(
            f"data.folder.mask_pattern is {mask_pattern!r}: write {{stem}} once, where the image's "
            "name goes, as in '{stem}_mask'."
        )
    without_extension = mask_pattern = unicodedata.normalize("NFC", mask_pattern)
    if image_files.extension_of(mask_pattern) in image_files.EXTENSIONS:
        without_extension = os.path.splitext(mask_pattern)[0]
    escaped = re.escape(without_extension).replace(re.escape("{stem}"), "(?P<base>.+)")
    return re.compile(escaped.replace(re.escape("*"), ".*"))


def _id(folder: pathlib.Path, path: pathlib.Path) -> str:
    # macOS writes letters with accents as two characters, other systems as one.
    name = path.relative_to(folder).with_suffix("").as_posix()
    return unicodedata.normalize("NFC", name)


def _plain(folder: str) -> str:
    return re.sub("[ _-]", "", folder.lower())


def _without(case_id: str, folders: set[str]) -> str:
    """The id without folders that only say 'images' or 'masks'."""
    *parents, stem = case_id.split("/")
    return "/".join([*(name for name in parents if _plain(name) not in folders), stem])


def _divide(folder: pathlib.Path, paths: Sequence[pathlib.Path], pattern: re.Pattern | None):
    """Files below one folder, divided into images and masks, each with its id."""
    images, masks = [], []
    names = {path.with_suffix("") for path in paths}
    names |= {path.with_name(base) for path in paths for base in _image_bases(path.stem)}
    for path in paths:
        case_id = _id(folder, path)
        if MASK_FOLDERS & {_plain(parent) for parent in case_id.split("/")[:-1]}:
            masks.append((_without(case_id, MASK_FOLDERS), path))
            continue
        case_id = _without(case_id, IMAGE_FOLDERS)
        if pattern:
            is_mask = bool(pattern.fullmatch(case_id.rpartition("/")[2]))
        else:
            is_mask = _is_mask_beside(path.with_suffix(""), names)
        (masks if is_mask else images).append((case_id, path))
    return images, masks


def _is_mask_beside(path: pathlib.Path, names: set[pathlib.Path]) -> bool:
    """Whether a file is a mask: named as the mask of another file, or as nothing but a mask.

    Args:
      path: of the file, without extension.
      names: of all files that are not in a folder of masks, without extension, and what may be the
        names of images in them.
    """
    if path.with_name(path.name + "_0000") in names:
        return True
    bases = [path.with_name(base) for base, _ in _mask_bases(path.name) if base]
    if any(base in names for base in bases):
        return True
    is_base = any(path.with_name(f"{path.name}_{word}") in names for word in MASK_WORDS)
    ending, alone = _MASK_ENDING.fullmatch(path.name), _MASK_ALONE.fullmatch(path.name)
    return bool(ending or alone) and not is_base


def _mask_bases(stem: str) -> list[tuple[str, str]]:
    """What may be the image's name in a mask's, each with the word that was taken off."""
    matches = (_MASK_ENDING.fullmatch(stem), _MASK_START.fullmatch(stem))
    bases = [(match["base"], match["kind"].lower()) for match in matches if match]
    alone = _MASK_ALONE.fullmatch(stem)
    return [*bases, ("", alone["kind"].lower())] if alone else bases


def _image_bases(stem: str) -> list[str]:
    matches = (_IMAGE_ENDING.fullmatch(stem), _IMAGE_START.fullmatch(stem))
    return [match["base"] for match in matches if match]


def _assign(found: Pairs, candidates, pattern: re.Pattern | None) -> None:
    """Gives each mask to its image."""
    by_base: dict[str, list[str]] = {}
    for case_id in found.images:
        folder, slash, stem = case_id.rpartition("/")
        for base in _image_bases(stem):
            by_base.setdefault(folder + slash + base, []).append(case_id)
    kinds: dict[str, str] = {}
    in_doubt: set[str] = set()
    masks: dict[str, list[pathlib.Path]] = {}
    for mask_id, path in candidates:
        folder, slash, stem = mask_id.rpartition("/")
        bases = [(stem, ""), *_mask_bases(stem)]
        if pattern:
            match = pattern.fullmatch(stem)
            bases = [(match["base"], "")] if match else []
        names = [((folder + slash + base).rstrip("/"), kind) for base, kind in bases]
        fits = [([name], kind) for name, kind in names if name in found.images]
        fits += [(by_base[name], kind) for name, kind in names if name in by_base]
        if not fits:
            found.faults.append(Fault("orphan", path, "this mask has no image"))
            continue
        ids, kind = fits[0]
        if len(ids) > 1:
            fitting = ", ".join(found.images[case_id].name for case_id in ids[:3])
            text = f"this mask fits several images ({fitting}): {REMEDY}"
            found.faults.append(Fault("ambiguous", path, text))
            in_doubt.update(ids)
            continue
        earlier = masks.setdefault(ids[0], [])
        same_name = [other for other in earlier if other.stem == path.stem and not pattern]
        if same_name or kinds.setdefault(ids[0], kind) != kind:
            other = (same_name or earlier)[0].name
            text = (
                f"{other} is a mask of the same image: keep one of them, number parts that belong "
                f"together (_mask_1, _mask_2), or {REMEDY}"
            )
            found.faults.append(Fault("ambiguous", path, text))
            continue
        earlier.append(path)
    found.masks = {case_id: tuple(paths) for case_id, paths in masks.items()}
    for case_id, path in found.images.items():
        if case_id not in masks and case_id not in in_doubt:
            found.faults.append(Fault("missing", path, "this image has no mask"))


def _files(
    folder: pathlib.Path, excluded: Sequence[pathlib.Path], faults: list[Fault]
) -> list[pathlib.Path]:
    """Image files below a folder, sorted, without hidden ones and the excluded folders."""
    found = []
    for parent, names in walk.walk(folder, excluded):
        for name in names:
            path = parent / name
            if name.startswith(".") or path.stem.endswith(COMPANIONS):
                continue
            known = image_files.extension_of(name) in image_files.EXTENSIONS
            hint = image_files.unsupported_hint(name)
            if (known or hint) and not walk.is_readable(path):
                shown = pathlib.Path(walk.readable(path))
                faults.append(Fault("format", shown, walk.NOT_UTF8))
            elif known:
                found.append(path)
            elif hint:
                faults.append(Fault("format", path, hint))
    faults.sort(key=lambda fault: fault.path)
    return sorted(found)


def same_id(case_id: str, first: pathlib.Path, second: pathlib.Path) -> Fault:
    text = f"{first} has the same id {case_id!r}: keep one of them or rename one with its mask"
    return Fault("same id", second, text)


def summarise(faults: Sequence[Fault], num_images: int, origin: object) -> str:
    """One sentence for the first kind of fault, and how many others there are."""
    kind = min((fault.kind for fault in faults), key=KINDS.index)
    first = [fault for fault in faults if fault.kind == kind]
    orphans = [fault.path for fault in faults if fault.kind == "orphan"]
    if kind == "missing":
        others = f" Masks without image: {_few(orphans)}." if orphans else ""
        text = (
            f"{origin}: no mask for {len(first)} of {num_images} images "
            f"({_few([fault.path for fault in first])}): name each mask as its image, optionally "
            f"with _mask, _segmentation, _label, _seg or _gt behind it, or {REMEDY}.{others}"
        )
    elif kind == "orphan":
        number = f"{len(first)} masks have" if len(first) > 1 else "1 mask has"
        text = (
            f"{origin}: {number} no image ({_few(orphans)}): add the images, or remove those masks."
        )
    else:
        same = f" ({len(first)} such files)" if len(first) > 1 else ""
        text = f"{first[0].path}: {first[0].message}{same}."
    if more := len(faults) - len(first) - len(orphans) * (kind == "missing"):
        text += f" ({more} more of other kinds; --mode=check lists all.)"
    return text


def _few(paths: Sequence[pathlib.Path], number: int = 3) -> str:
    return ", ".join(path.name for path in paths[:number]) + ", ..." * (len(paths) > number)
