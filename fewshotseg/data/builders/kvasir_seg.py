"""Kvasir-SEG: polyps in colonoscopy.

    Kvasir-SEG/images/cju0qkwl35piu0993l0dewei2.jpg
    Kvasir-SEG/masks/cju0qkwl35piu0993l0dewei2.jpg       three channels, smeared by compression
    Kvasir-SEG/train.txt, Kvasir-SEG/val.txt             optional: the authors' split

The archive has no split. The authors' lists of 880 and 120 ids, one a line, are in the repository
DebeshJha/2020-MediaEval-Medico-polyp-segmentation; put beside `images`, they become the splits
'train' and 'validation'.
"""

import pathlib

from fewshotseg.data import split_files
from fewshotseg.data.builders import base

_LISTS = {"train.txt": "train", "val.txt": "validation"}


class KvasirSeg(base.SegmentationBuilder):
    name = "kvasir_seg"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download kvasir-seg.zip from https://datasets.simula.no/kvasir-seg/, unpack it into a
        folder, and give that folder: it then holds Kvasir-SEG/images/ and Kvasir-SEG/masks/.
    """
    class_names = ("polyp",)
    description = (
        "1000 frames of colonoscopies with the outline of the polyp, 332 x 487 to 1920 x 1072 "
        "pixels. The archive has no split; train.txt and val.txt of the authors, put beside "
        "'images', are used if they are there. No patient ids."
    )
    homepage = "https://datasets.simula.no/kvasir-seg/"
    licence = "Research and education only; commercial use needs the owners' consent."
    citation = """
@inproceedings{jha2020kvasir,
  author = {Jha, Debesh and Smedsrud, Pia H. and Riegler, Michael A. and Halvorsen, P{\\aa}l and
            de Lange, Thomas and Johansen, Dag and Johansen, H{\\aa}vard D.},
  title = {{Kvasir-SEG}: A Segmented Polyp Dataset},
  booktitle = {MultiMedia Modeling (MMM)},
  pages = {451--462},
  year = {2020}
}"""

    def list_items(self, source_dir):
        root = base.find_folder(source_dir, "Kvasir-SEG")
        if root is None:
            return []
        split_of = {
            pathlib.PurePath(case_id).stem: split
            for name, split in _LISTS.items()
            if all((root / other).is_file() for other in _LISTS)
            for case_id in split_files.read_ids(root / name)
        }
        items = base.items_of_folders(root / "images", root / "masks")
        return [
            base.Item(item.id, item.image, item.masks, split_of.get(item.id, base.UNSPLIT))
            for item in items
        ]
