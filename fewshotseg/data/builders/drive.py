"""DRIVE: retinal vessels in fundus photographs.

    DRIVE/training/images/21_training.tif      DRIVE/training/1st_manual/21_manual1.gif
    DRIVE/test/images/01_test.tif              DRIVE/test/1st_manual/01_manual1.gif
    DRIVE/training/mask/21_training_mask.gif   DRIVE/test/mask/01_test_mask.gif

The last are the field of view. Published results count the pixels inside; here those outside count
nowhere, neither in a loss nor in a metric. The official download may come without `test/1st_manual`;
the test images are left out then.
"""

import tensorflow_datasets as tfds

from fewshotseg.data.builders import base

_PARTS = {"train": "training", "test": "test"}


class Drive(base.SegmentationBuilder):
    name = "drive"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download the data from https://drive.grand-challenge.org (registration needed), unpack it
        into a folder DRIVE, and give the folder that holds DRIVE: it then holds
        DRIVE/training/images/, DRIVE/training/1st_manual/ and DRIVE/training/mask/.
    """
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Pixels outside the field of view count nowhere."}
    class_names = ("vessel",)
    description = (
        "Fundus photographs, 565 x 584 pixels, with the vessels drawn by the first observer: 20 "
        "training and 20 test images (the test drawings may be missing from the download; these "
        "images are then left out). Pixels outside the field of view count nowhere, as in published "
        "results. Ids are '01' to '40'."
    )
    homepage = "https://drive.grand-challenge.org"
    licence = "Unknown."
    citation = """
@article{staal2004ridge,
  author = {Staal, Joes and Abr{\\`a}moff, Michael D. and Niemeijer, Meindert and
            Viergever, Max A. and van Ginneken, Bram},
  title = {Ridge-based vessel segmentation in color images of the retina},
  journal = {IEEE Transactions on Medical Imaging},
  volume = {23},
  number = {4},
  pages = {501--509},
  year = {2004}
}"""

    def list_items(self, source_dir):
        root = base.find_folder(source_dir, "DRIVE")
        items = []
        for split, part in _PARTS.items() if root else ():
            masks, views = root / part / "1st_manual", root / part / "mask"
            if split == "test" and not masks.is_dir():
                continue
            for stem, path in base.image_files(root / part / "images").items():
                number = stem.partition("_")[0]
                drawn, view = masks / f"{number}_manual1.gif", views / f"{path.stem}_mask.gif"
                items.append(base.Item(number, path, (drawn,), split=split, inside=view))
        return items
