"""A user's own images and masks, as files in folders or in a table; `pairing` says what fits what."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from fewshotseg.data import image_files, mask_values
from fewshotseg.data.sources import groups, pairing, pairs_table
from fewshotseg.data.split_files import read_ids, resolve_ids
from fewshotseg.errors import InputError
from fewshotseg.labels import as_labels, is_foreground
from fewshotseg.types import Case

Folder = str | os.PathLike[str]
_PATTERN = "data.folder.group_pattern"


class FolderSource:
    """A `CaseSource` of image and mask files.

    Construction lists the folders, pairs the names, compares the sizes in the files' headers and
    looks for one mask with foreground; pixels are read by `load`. Ids are paths relative to the
    image folder without extension (or the folder alone, where each case has a folder).

    Args:
      images_dir: folder of images, searched with its subfolders; or several such folders.
      masks_dir: folder of masks; the same one if they lie beside the images; as many as images_dir.
      class_names: foreground classes; with one, masks may be 0/1, 0/255 or JPEG-compressed.
      name: of the data set.
      pairs_csv: a table of images and masks in place of the two folders, see `pairs_table`.
      mask_pattern: how masks are named, where the usual rules fail, see `pairing.pair_folders`.
      include: restricts the cases to these ids; a path is read as a text list, one id a line.
      group_pattern: regular expression searched in each id; its first group (else the whole match)
        is the patient or series. Cases of one group never end on two sides of a split.
      class_ids: value of the background and of every class in the masks, where they are not 0, 1, 2, ...
      ignore_id: value of pixels that count nowhere; -1 if there are none.
      minimum_cases: fewer than this many are refused.
      strict: raise a fault at construction; otherwise all are kept in `faults` (message by id, or
        by path where a file is no case), and raised by `load`, so that a check can list them.

    Attributes:
      notes: what may be wrong with all of it: a group pattern that does not match every id.
      labels: see `class_ids` and `ignore_id`.
      root: the folder that holds all files: what a message may leave out.
      faults: see `strict`; empty if it is set.

    Raises:
      InputError: missing folder, no or too few images, images without mask or the reverse, two
        images with one id, unreadable file, image and mask of different size, no foreground at all,
        a group pattern that is no regular expression or matches no id, class ids that do not fit the names.
    """

    def __init__(
        self,
        images_dir: Folder | Sequence[Folder] = (),
        masks_dir: Folder | Sequence[Folder] = (),
        class_names: Sequence[str] = ("foreground",),
        name: str = "folder",
        *,
        pairs_csv: Folder | None = None,
        mask_pattern: str = "",
        include: Folder | Iterable[str] | None = None,
        group_pattern: str | None = None,
        class_ids: Sequence[int] = (),
        ignore_id: int = -1,
        minimum_cases: int = 4,
        strict: bool = True,
    ):
        self.name = name
        self.class_names = tuple(class_names)
        self.labels = as_labels(class_ids, ignore_id)
        self.labels.check(len(self.class_names), "data.folder")
        self.notes: tuple[str, ...] = ()
        self.official_splits: Mapping[str, tuple[str, ...]] = {}
        if pairs_csv:
            place = pathlib.Path(pairs_csv).expanduser()
            found, self.root = pairs_table.read_pairs(place), place.parent
        else:
            found, folders = pairing.Pairs(), _folder_pairs(images_dir, masks_dir)
            for images_folder, masks_folder in folders:
                found.add(pairing.pair_folders(images_folder, masks_folder, mask_pattern))
            place = folders[0][1]
            self.root = pathlib.Path(os.path.commonpath([f.absolute() for p in folders for f in p]))
        faults = found.faults if include is None else self._restrict(found, include, place)
        self._images, self._masks, self._groups = found.images, found.masks, found.groups
        if faults and strict:
            raise InputError(pairing.summarise(faults, len(found.images), place))
        self.ids = tuple(sorted(self._images.keys() & self._masks.keys()))
        if len(self.ids) < minimum_cases and not faults:
            raise InputError(
                f"{place if pairs_csv else folders[0][0]}: {len(self.ids)} labelled images found, "
                f"but at least {minimum_cases} are needed: label more images."
            )
        if group_pattern:
            found_groups = groups.find_groups(group_pattern, self.ids, _PATTERN)
            self._groups = {**self._groups, **found_groups}
            note = groups.some_groups(group_pattern, self.ids, self._groups, _PATTERN)
            self.notes = (note,) if note else ()
        lost = bool(group_pattern) and bool(self.ids) and not any(self._groups.values())
        if lost and strict:
            raise InputError(groups.no_groups(group_pattern, self.ids, _PATTERN))
        self.faults = {
            self._short(fault.path): f"{fault.path}: {fault.message}." for fault in faults
        }
        self.faults |= self._header_faults()
        if strict:
            self._raise_faults()
            self._require_foreground()
        elif lost:
            self.faults["group_pattern"] = groups.no_groups(group_pattern, self.ids, _PATTERN)

    def load(self, case_id: str) -> Case:
        """Reads one case at its original size.

        Raises:
          InputError: unknown id, unreadable file, sizes that differ, or unexpected mask values.
        """
        if case_id not in self._images or case_id not in self._masks:
            resolve_ids([case_id], self.ids, f"data set {self.name!r}")
        image_path, mask_paths = self._images[case_id], self._masks[case_id]
        image, notes = image_files.read_image(image_path)
        raw = image_files.read_mask(mask_paths, len(self.class_names))
        if raw.shape != image.shape[:2]:
            raise InputError(_size_message(image_path, image.shape, mask_paths[0], raw.shape))
        mask = mask_values.mask_to_class_ids(raw, len(self.class_names), mask_paths[0], self.labels)
        notes += mask_values.mask_notes(raw, len(self.class_names), self.labels)
        return Case(case_id, image, mask, self._groups.get(case_id, ""), notes)

    def _restrict(self, found: pairing.Pairs, include, place) -> list[pairing.Fault]:
        """Leaves the listed cases in `found`; returns the faults that concern them."""
        if isinstance(include, str | os.PathLike):
            names, origin = read_ids(include), str(include)
        else:
            names, origin = tuple(include), f"the list of cases for data set {self.name!r}"
        ids = resolve_ids(names, sorted(found.images), origin)
        found.images = {case_id: found.images[case_id] for case_id in ids}
        listed = set(found.images.values())
        return [
            fault
            for fault in found.faults
            if fault.kind != "orphan" and (fault.kind != "missing" or fault.path in listed)
        ]

    def _header_faults(self) -> dict[str, str]:
        faults = {}
        for case_id in self.ids:
            image_path, mask_paths = self._images[case_id], self._masks[case_id]
            try:
                sizes = {image_files.read_size(path) for path in (image_path, *mask_paths)}
                if len(sizes) > 1:
                    self.load(case_id)  # knows every oddity of a header, and has the message
            except InputError as error:
                faults[case_id] = str(error)
        return faults

    def _short(self, path: pathlib.Path) -> str:
        path = path.absolute()
        inside = path.is_relative_to(self.root.absolute())
        return (path.relative_to(self.root.absolute()) if inside else path).as_posix()

    def _raise_faults(self) -> None:
        if self.faults:
            more = f" (Files with faults: {len(self.faults)}; --mode=check lists them.)"
            raise InputError(next(iter(self.faults.values())) + more * (len(self.faults) > 1))

    def _require_foreground(self) -> None:
        for case_id in self.ids:  # as a rule the first one settles it
            paths = self._masks[case_id]
            raw = image_files.read_mask(paths, len(self.class_names))
            mask = mask_values.mask_to_class_ids(raw, len(self.class_names), paths[0], self.labels)
            if is_foreground(mask).any():
                return
        raise InputError(
            f"{self._masks[self.ids[0]][0].parent}: none of the {len(self.ids)} masks has any "
            "foreground: export the masks again with the object as 255 (or class ids 1, 2, ...)."
        )


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
        try:
            missing = not folder.is_dir()
        except PermissionError as error:
            raise InputError(f"{folder}: no permission to read this folder.") from error
        if missing:
            what = "is a file, not a folder" if folder.is_file() else "there is no such folder"
            raise InputError(f"{folder}: {what}: give the folder that holds the {kind}.")
    return list(zip(images, masks, strict=True))


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
