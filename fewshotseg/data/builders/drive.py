"""DRIVE: retinal vessels in fundus photographs.

    DRIVE/training/images/21_training.tif      DRIVE/training/1st_manual/21_manual1.gif
    DRIVE/test/images/01_test.tif              DRIVE/test/1st_manual/01_manual1.gif
    DRIVE/{training,test}/mask/                the field of view: not read

The official download may come without `test/1st_manual`; the test images are left out then.
Published results count pixels inside the field of view only; here all pixels count, and those
outside are background.
"""

from fewshotseg.data.builders import base

_PARTS = {"train": "training", "test": "test"}


class Drive(base.SegmentationBuilder):
    name = "drive"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download the data from https://drive.grand-challenge.org (registration needed), unpack it
        into a folder DRIVE, and give the folder that holds DRIVE: it then holds
        DRIVE/training/images/ and DRIVE/training/1st_manual/.
    """
    class_names = ("vessel",)
    description = (
        "Fundus photographs, 565 x 584 pixels, with the vessels drawn by the first observer: 20 "
        "training and 20 test images (the test drawings may be missing from the download; these "
        "images are then left out). The masks of the field of view are not used: pixels outside "
        "it are background. Ids are '01' to '40'."
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
            masks = root / part / "1st_manual"
            if split == "test" and not masks.is_dir():
                continue
            for stem, path in base.image_files(root / part / "images").items():
                number = stem.partition("_")[0]
                items.append(
                    base.Item(number, path, (masks / f"{number}_manual1.gif",), split=split)
                )
        return items
