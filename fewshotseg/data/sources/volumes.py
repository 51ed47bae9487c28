"""Labelled volumes of a user: NIfTI files or DICOM series in a folder; see `volume_layouts`."""

import os
import pathlib
from collections.abc import Sequence

from fewshotseg.data import label_files, volume_files
from fewshotseg.data.sources import groups, volume_layouts
from fewshotseg.data.split_files import read_ids, resolve_ids
from fewshotseg.errors import InputError
from fewshotseg.labels import Labels, as_labels
from fewshotseg.types import Case

_PATTERN = "data.volumes.group_pattern"


class VolumeSource:
    """A `CaseSource` of NIfTI files and DICOM series.

    Construction lists the files, pairs them and compares their headers; voxels are read by `load`.

    Args:
      folder: in a layout of `volume_layouts`; '' where the next two are given.
      images_dir: folder of images, in place of `folder`.
      labels_dir: folder of label maps of the same names.
      class_names: the foreground classes; () for those of dataset.json.
      class_ids: value of the background and of every class in the label maps; () for those of
        dataset.json, or 0, 1, 2, ...
      ignore_id: value of voxels that count nowhere; -1 for that of dataset.json, if there is one.
      name: of the data set.
      channel: see `volume_layouts.read_folder`.
      window: see `volume_files.GreyValues`.
      percentiles: likewise.
      include: text file of the ids to use, one a line; '' for all.
      group_pattern: regular expression searched in each id; its first group (else the whole match) is
        the patient. '' for none.
      minimum_cases: fewer than this many are refused.
      strict: raise a fault at construction; otherwise all are kept in `faults`.

    Attributes:
      notes: what may be wrong with all of it: a group pattern that does not match every id.
      labels: which values mean what.
      root: the folder that holds all files: what a message may leave out.
      faults: message by id; empty if `strict`.

    Raises:
      InputError: missing folder, no cases, an image without labels or the reverse, a file that is no
        volume of three axes, labels on another grid than their image, or no names of classes.
    """

    def __init__(
        self,
        folder: str = "",
        images_dir: str = "",
        labels_dir: str = "",
        class_names: Sequence[str] = (),
        name: str = "volumes",
        *,
        class_ids: Sequence[int] = (),
        ignore_id: int = -1,
        channel: int = 0,
        window: Sequence[float] = (0.0, 0.0),
        percentiles: Sequence[float] = (0.5, 99.5),
        include: str = "",
        group_pattern: str = "",
        minimum_cases: int = 4,
        strict: bool = True,
    ):
        self.name, self.official_splits = name, {}
        self._grey = volume_files.GreyValues(tuple(window), tuple(percentiles))
        if folder:
            place = pathlib.Path(folder).expanduser()
            found, self.root = volume_layouts.read_folder(place, channel), place
        elif images_dir and labels_dir:
            place, labels = (pathlib.Path(d).expanduser() for d in (images_dir, labels_dir))
            found = volume_layouts.pair_folders(place, labels, channel)
            self.root = pathlib.Path(os.path.commonpath([place.absolute(), labels.absolute()]))
        else:
            raise InputError(
                "data.volumes.folder is empty: give --config.data.volumes.folder=FOLDER, or images_dir "
                "and labels_dir."
            )
        self.class_names = tuple(class_names) or found.class_names
        if not self.class_names:
            raise InputError(
                "data.volumes.class_names is (), and no dataset.json names the classes: give "
                "--config.data.volumes.class_names=\"('NAME','NAME')\" for the labels 1, 2."
            )
        self.labels = _labels(class_ids, ignore_id, found, len(self.class_names))
        self._images, self._labels, self.faults = found.images, found.labels, found.faults
        ids = tuple(sorted(self._images))
        if include:
            ids = tuple(sorted(resolve_ids(read_ids(include), ids, include)))
            self.faults = {i: fault for i, fault in self.faults.items() if i in ids}
        self.ids = ids
        for case_id in self.ids:
            try:
                label_files.check_same_grid(self._images[case_id], self._labels[case_id])
            except InputError as error:
                self.faults[case_id] = str(error)
        if strict:
            self._raise_faults()
        if len(self.ids) < minimum_cases and not self.faults:
            raise InputError(
                f"{place}: {len(self.ids)} labelled volumes found, but at least {minimum_cases} are "
                "needed: label more."
            )
        self._groups, self.notes = {}, ()
        if group_pattern:
            self._groups = groups.find_groups(group_pattern, self.ids, _PATTERN)
            if not any(self._groups.values()):
                raise InputError(groups.no_groups(group_pattern, self.ids, _PATTERN))
            note = groups.some_groups(group_pattern, self.ids, self._groups, _PATTERN)
            self.notes = (note,) if note else ()

    def load(self, case_id: str) -> Case:
        """Reads one case: image float32 `[D, H, W, 1]` in [0, 255], mask uint8 `[D, H, W]`.

        Raises:
          InputError: unknown id, unreadable file, NaN, another grid, or labels that are no class ids.
        """
        if case_id not in self.ids:
            resolve_ids([case_id], self.ids, f"data set {self.name!r}")
        label_path = self._labels[case_id]
        image = volume_files.read_volume(self._images[case_id])
        return Case(
            id=case_id,
            image=self._grey(image.values)[..., None],
            mask=label_files.read_labels(label_path, image, self.class_names, self.labels),
            group=self._groups.get(case_id, ""),
            spacing=image.spacing,
            affine=image.affine,
        )

    def _raise_faults(self) -> None:
        if self.faults:
            more = f" (Files with faults: {len(self.faults)}; --mode=check lists them.)"
            raise InputError(next(iter(self.faults.values())) + more * (len(self.faults) > 1))


def _labels(class_ids, ignore_id, found: volume_layouts.Layout, num_classes: int) -> Labels:
    """Those of the configuration, else of dataset.json as far as it is about as many classes."""
    of_file = len(found.class_names) == num_classes
    ids = class_ids or (found.values.ids if of_file else ())
    ignored = ignore_id if ignore_id >= 0 or not of_file else found.values.ignored
    labels = as_labels(ids, ignored)
    labels.check(num_classes, "data.volumes")
    return labels
