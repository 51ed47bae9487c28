"""A user's own images and masks, as files in folders.

Images and masks belong together by name. A mask is called as its image, or with one of the endings
`_mask`, `_segmentation`, `_label`, `_seg`, `_gt`; `_mask`, `_mask_1`, `_mask_2` of one image are
joined. Accepted layouts:

    images/0018.png        masks/0018.png           two folders, subfolders alike on both sides
    images/a.jpg           masks/a_segmentation.png
    benign (1).png         benign (1)_mask.png      one folder given twice
    train/images/0018.png  train/labels/0018.png    one folder given twice; the id is 'train/0018'
"""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from fewshotseg.data import image_files as transforms
from fewshotseg.data.split_files import read_ids, resolve_ids
from fewshotseg.errors import InputError
from fewshotseg.types import Case

MASK_ENDINGS = ("_mask", "_segmentation", "_label", "_seg", "_gt")
_MASK_NAME = re.compile(
    r"^(?P<base>.+)[ _-](?P<kind>masks?|segmentations?|labels?|segs?|gt)(?:[ _-]?\d+)?$",
    re.IGNORECASE,
)
_IMAGE_FOLDERS = {"image", "images", "img", "imgs"}
_MASK_FOLDERS = {"mask", "masks", "label", "labels", "gt", "segmentation", "segmentations"}
_COMPANIONS = ("_superpixels",)  # files that official archives keep among their images

Folder = str | os.PathLike[str]


class FolderSource:
    """A `CaseSource` of image and mask files.

    Construction lists the folders, pairs the names, compares the sizes in the files' headers and
    looks for one mask with foreground; pixels are read by `load`. Ids are paths relative to the
    image folder without extension.

    Args:
      images_dir: folder of images, searched with its subfolders; or several such folders.
      masks_dir: folder of masks; the same one if they lie beside the images; as many as images_dir.
      class_names: foreground classes; with one, masks may be 0/1, 0/255 or JPEG-compressed.
      name: of the data set.
      include: restricts the cases to these ids; a path is read as a text list, one id a line.
      group_pattern: regular expression searched in each id; its first group (else the whole match)
        is the patient or series. Cases of one group never end on two sides of a split.
      minimum_cases: fewer than this many are refused.
      strict: raise a file's fault at construction; otherwise it is kept in `faults` (message by
        id) and raised by `load`, so that a check can list them all.

    Raises:
      InputError: missing folder, no or too few images, images without mask or the reverse, two
        images with one id, unreadable file, image and mask of different size, no foreground at all.
    """

    def __init__(
        self,
        images_dir: Folder | Sequence[Folder],
        masks_dir: Folder | Sequence[Folder],
        class_names: Sequence[str] = ("foreground",),
        name: str = "folder",
        *,
        include: Folder | Iterable[str] | None = None,
        group_pattern: str | None = None,
        minimum_cases: int = 4,
        strict: bool = True,
    ):
        self.name = name
        self.class_names = tuple(class_names)
        self.official_splits: Mapping[str, tuple[str, ...]] = {}
        self._group_pattern = _compiled(group_pattern)
        self._images, self._masks = {}, {}
        for images_folder, masks_folder in _folder_pairs(images_dir, masks_dir):
            images, masks, orphans = _pair_files(images_folder, masks_folder)
            for case_id in images.keys() & self._images.keys():
                raise _two_images(case_id, self._images[case_id], images[case_id])
            self._images.update(images)
            self._masks.update(masks)
            if include is None:
                _refuse_unpaired(images, masks, orphans, masks_folder)
        self.ids = tuple(sorted(self._images))
        if include is not None:
            self._restrict(include)
        if len(self.ids) < minimum_cases:
            raise InputError(
                f"{_as_list(images_dir)[0]}: {len(self.ids)} labelled images found, but at least "
                f"{minimum_cases} are needed: label more images."
            )
        self.faults = self._header_faults()
        if strict:
            self._raise_faults()
            self._require_foreground()

    def load(self, case_id: str) -> Case:
        """Reads one case at its original size.

        Raises:
          InputError: unknown id, unreadable file, sizes that differ, or unexpected mask values.
        """
        if case_id not in self._images:
            resolve_ids([case_id], self.ids, f"data set {self.name!r}")
        image_path, mask_paths = self._images[case_id], self._masks[case_id]
        image, notes = transforms.read_image(image_path)
        raw = transforms.read_mask(mask_paths)
        if raw.shape != image.shape[:2]:
            raise InputError(_size_message(image_path, image.shape, mask_paths[0], raw.shape))
        mask = transforms.mask_to_class_ids(raw, len(self.class_names), mask_paths[0])
        notes += transforms.mask_notes(raw, len(self.class_names))
        return Case(case_id, image, mask, self._group(case_id), notes)

    def _restrict(self, include) -> None:
        if isinstance(include, str | os.PathLike):
            names, origin = read_ids(include), str(include)
        else:
            names, origin = tuple(include), f"the list of cases for data set {self.name!r}"
        self.ids = tuple(sorted(resolve_ids(names, self.ids, origin)))
        _refuse_unpaired({i: self._images[i] for i in self.ids}, self._masks, (), origin)

    def _group(self, case_id: str) -> str:
        found = self._group_pattern.search(case_id) if self._group_pattern else None
        return "" if found is None else found[1 if found.groups() else 0]

    def _header_faults(self) -> dict[str, str]:
        faults = {}
        for case_id in self.ids:
            image_path, mask_paths = self._images[case_id], self._masks[case_id]
            try:
                sizes = {transforms.read_size(path) for path in (image_path, *mask_paths)}
                if len(sizes) > 1:
                    self.load(case_id)  # knows every oddity of a header, and has the message
            except InputError as error:
                faults[case_id] = str(error)
        return faults

    def _raise_faults(self) -> None:
        if self.faults:
            more = f" (Files with faults: {len(self.faults)}; --mode=check lists them.)"
            raise InputError(next(iter(self.faults.values())) + more * (len(self.faults) > 1))

    def _require_foreground(self) -> None:
        for case_id in self.ids:  # as a rule the first one settles it
            paths = self._masks[case_id]
            raw = transforms.read_mask(paths)
            if transforms.mask_to_class_ids(raw, len(self.class_names), paths[0]).any():
                return
        raise InputError(
            f"{self._masks[self.ids[0]][0].parent}: none of the {len(self.ids)} masks has any "
            "foreground: export the masks again with the object as 255 (or class ids 1, 2, ...)."
        )


def _compiled(pattern: str | None) -> re.Pattern | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise InputError(f"group_pattern {pattern!r} is no regular expression: {error}.") from error


def _as_list(folders) -> list[pathlib.Path]:
    folders = [folders] if isinstance(folders, str | os.PathLike) else folders
    return [pathlib.Path(folder).expanduser() for folder in folders]


def _folder_pairs(images_dir, masks_dir) -> list[tuple[pathlib.Path, pathlib.Path]]:
    images, masks = _as_list(images_dir), _as_list(masks_dir)
    if len(images) != len(masks) or not images:
        raise InputError(
            f"{len(images)} image folders but {len(masks)} mask folders are given: list them in "
            "pairs, in the same order."
        )
    for kind, folder in [("images", f) for f in images] + [("masks", f) for f in masks]:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.is_file() else "there is no such folder"
            raise InputError(f"{folder}: {what}: give the folder that holds the {kind}.")
    return list(zip(images, masks, strict=True))


def _pair_files(images_folder: pathlib.Path, masks_folder: pathlib.Path):
    """Images by id, mask files by id, and masks that belong to no image."""
    images, candidates = {}, []
    together = images_folder.resolve() == masks_folder.resolve()
    for path in _files(images_folder, () if together else (masks_folder,)):
        case_id = path.relative_to(images_folder).with_suffix("").as_posix()
        parts = case_id.split("/")
        if together and _MASK_FOLDERS & {part.lower() for part in parts[:-1]}:
            candidates.append((_without(parts, _MASK_FOLDERS), path))
            continue
        if together:
            case_id = _without(parts, _IMAGE_FOLDERS)
        if together and _MASK_NAME.match(parts[-1]):
            candidates.append((case_id, path))
        elif case_id in images:
            raise _two_images(case_id, images[case_id], path)
        else:
            images[case_id] = path
    if not together:
        candidates = [
            (path.relative_to(masks_folder).with_suffix("").as_posix(), path)
            for path in _files(masks_folder, (images_folder,))
        ]
    for folder, files in ((images_folder, images), (masks_folder, candidates)):
        if not files:
            kind = "images" if files is images else "masks"
            extensions = " ".join(transforms.EXTENSIONS)
            raise InputError(f"{folder}: no {kind} found; files with {extensions} are read.")
    return images, *_assign(images, candidates)


def is_mask_of(path: pathlib.Path, images: set[pathlib.Path]) -> bool:
    """Whether `path` is named as a mask of one of `images`, paths without extension."""
    match = _MASK_NAME.match(path.stem)
    return bool(match) and path.with_name(match["base"]) in images


def _assign(images, candidates):
    masks, kinds, orphans = {}, {}, []
    for mask_id, path in candidates:
        folder, _, stem = mask_id.rpartition("/")
        match = _MASK_NAME.match(stem)
        case_id, kind = mask_id, ""
        if mask_id not in images and match:
            case_id = f"{folder}/{match['base']}" if folder else match["base"]
            kind = match["kind"].lower()
        if case_id not in images:
            orphans.append(path)
            continue
        earlier = masks.setdefault(case_id, [])
        same_name = [other for other in earlier if other.stem == path.stem]
        if same_name or kinds.setdefault(case_id, kind) != kind:
            raise InputError(
                f"{path}: {(same_name or earlier)[0].name} is a mask of the same image: keep one "
                "of them, or number parts that belong together (_mask_1, _mask_2)."
            )
        earlier.append(path)
    return masks, orphans


def _files(folder: pathlib.Path, excluded: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Image files below a folder, sorted, without hidden ones and the excluded folders."""
    excluded = {other.resolve() for other in excluded}
    found, refused = [], []
    for parent, folders, names in os.walk(folder):
        parent = pathlib.Path(parent)
        folders[:] = [
            name
            for name in folders
            if name[0] not in "._" and (parent / name).resolve() not in excluded
        ]
        for name in names:
            if name.startswith(".") or parent.joinpath(name).stem.endswith(_COMPANIONS):
                continue
            if transforms.extension_of(name) in transforms.EXTENSIONS:
                found.append(parent / name)
            elif transforms.unsupported_hint(name):
                refused.append(parent / name)
    if refused:
        first = min(refused)
        count = f" ({len(refused)} such files)" if len(refused) > 1 else ""
        raise InputError(f"{first}: {transforms.unsupported_hint(first)}{count}.")
    return sorted(found)


def _without(parts: Sequence[str], folders: set[str]) -> str:
    """The path without folders that only say 'images' or 'masks'."""
    return "/".join([part for part in parts[:-1] if part.lower() not in folders] + [parts[-1]])


def _refuse_unpaired(images, masks, orphans, origin) -> None:
    missing = [path for case_id, path in images.items() if case_id not in masks]
    if missing:
        example = f" Masks without image: {_few(orphans)}." if orphans else ""
        raise InputError(
            f"{origin}: no mask for {len(missing)} of {len(images)} images ({_few(missing)}): name "
            f"each mask as its image, optionally ending in {' '.join(MASK_ENDINGS)}, or remove "
            f"those images.{example}"
        )
    if orphans:
        raise InputError(
            f"{origin}: {len(orphans)} masks have no image ({_few(orphans)}): add the images, or "
            "remove those masks."
        )


def _few(paths: Sequence[pathlib.Path], number: int = 3) -> str:
    return ", ".join(path.name for path in paths[:number]) + ", ..." * (len(paths) > number)


def _two_images(case_id: str, first: pathlib.Path, second: pathlib.Path) -> InputError:
    return InputError(
        f"{second}: {first} has the same id {case_id!r}: keep one of them or rename one with its "
        "mask."
    )


def _size_message(image_path, image_shape, mask_path, mask_shape) -> str:
    turned = tuple(mask_shape) == (image_shape[1], image_shape[0])
    remedy = (
        "one of them is turned: save the image upright without EXIF rotation, or turn the mask"
        if turned
        else "export the mask at the size of its image"
    )
    return (
        f"{mask_path}: the mask is {mask_shape[1]} x {mask_shape[0]} pixels, but its image "
        f"{image_path.name} is {image_shape[1]} x {image_shape[0]}: {remedy}."
    )
