"""Volumes of the Medical Segmentation Decathlon: the NIfTI files themselves, byte for byte.

    Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz
    Task04_Hippocampus/labelsTr/hippocampus_001.nii.gz
    Task04_Hippocampus/imagesTs/                          without labels: not read

The official test part has no public labels, so a fifth of the training part tests.
"""

import pathlib

import tensorflow_datasets as tfds

from fewshotseg.data import label_files, volume_files
from fewshotseg.data.builders import base

_CITATION = """
@article{antonelli2022medical,
  author = {Antonelli, Michela and Reinke, Annika and Bakas, Spyridon and others},
  title = {The Medical Segmentation Decathlon},
  journal = {Nature Communications},
  volume = {13},
  number = {4128},
  year = {2022}
}"""


class VolumeBuilder(base.SegmentationBuilder):
    """Base of the builders of volumes; a subclass also sets `folder`.

    Features of an example: 'id', 'group', 'notes' as of all builders; 'image' and 'mask', the contents of
    the two NIfTI files.

    Attributes:
      folder: of the unpacked archive.
    """

    folder = ""
    homepage = "http://medicaldecathlon.com"
    licence = "CC BY-SA 4.0."
    citation = _CITATION

    def features(self) -> dict:
        return {"image": tfds.features.Text(), "mask": tfds.features.Text()}

    def list_items(self, source_dir: pathlib.Path):
        root = base.find_folder(source_dir, self.folder)
        images = root / "imagesTr" if root else None
        if images is None or not images.is_dir():
            return []
        return [
            base.Item(volume_files.stem_of(path), path, (root / "labelsTr" / path.name,))
            for path in sorted(images.iterdir())
            if volume_files.is_volume(path)
        ]

    def look(self, item: base.Item) -> None:
        (label,) = item.masks
        label_files.check_same_grid(item.image, label)
        values = volume_files.read_volume(label).values
        label_files.to_class_ids(values, len(self.class_names), label)

    def example(self, item: base.Item) -> dict:
        (label,) = item.masks
        volume_files.read_volume(item.image)  # NaN and damage are found now, not in a training
        return {"notes": "", "image": item.image.read_bytes(), "mask": label.read_bytes()}


class MsdHippocampus(VolumeBuilder):
    name = "msd_hippocampus"
    folder = "Task04_Hippocampus"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download Task04_Hippocampus.tar from http://medicaldecathlon.com, unpack it into a folder, and
        give that folder: it then holds Task04_Hippocampus/imagesTr/ and Task04_Hippocampus/labelsTr/.
    """
    class_names = ("anterior", "posterior")
    description = (
        "260 labelled MR volumes around one hippocampus, about 35 x 50 x 35 voxels of 1 mm, with its "
        "anterior and posterior parts. Left and right sides of one patient are separate volumes, and the "
        "names do not tell."
    )


class MsdLiver(VolumeBuilder):
    name = "msd_liver"
    folder = "Task03_Liver"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download Task03_Liver.tar from http://medicaldecathlon.com, unpack it into a folder, and give
        that folder: it then holds Task03_Liver/imagesTr/ and Task03_Liver/labelsTr/.
    """
    class_names = ("liver", "cancer")
    description = (
        "131 labelled CT volumes of the abdomen, 512 x 512 pixels and 75 to 987 slices, with the liver and "
        "its tumours."
    )
