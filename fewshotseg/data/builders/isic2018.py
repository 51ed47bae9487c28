"""ISIC 2018, task 1: skin lesions in dermoscopy.

ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
ISIC2018_Task1-2_Validation_Input/             ISIC2018_Task1_Validation_GroundTruth/
ISIC2018_Task1-2_Test_Input/                   ISIC2018_Task1_Test_GroundTruth/
"""

from fewshotseg.data.builders import base

_PARTS = {"train": "Training", "validation": "Validation", "test": "Test"}


class Isic2018(base.SegmentationBuilder):
    name = "isic2018"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download 'Training Data' and 'Training Ground Truth' of task 1 and, if you want them, the
        validation and test parts from https://challenge.isic-archive.com/data/#2018, unpack all
        zip files into one folder, and give that folder: it then holds
        ISIC2018_Task1-2_Training_Input/ and ISIC2018_Task1_Training_GroundTruth/.
    """
    class_names = ("lesion",)
    description = (
        "Dermoscopic images of skin lesions with the outline of the lesion: 2594 training, 100 "
        "validation and 1000 test images of the ISIC 2018 challenge, task 1. No patient ids are "
        "published. Many images are also part of ISIC 2017: do not test on one what was trained "
        "on the other without removing the ids that occur in both."
    )
    homepage = "https://challenge.isic-archive.com/landing/2018/"
    licence = (
        "Not confirmed (CC0 or CC BY-NC 4.0): see https://challenge.isic-archive.com/data/#2018"
    )
    citation = """
@article{codella2019isic2018,
  author = {Codella, Noel and Rotemberg, Veronica and Tschandl, Philipp and others},
  title = {Skin Lesion Analysis Toward Melanoma Detection 2018: A Challenge Hosted by the
           International Skin Imaging Collaboration (ISIC)},
  journal = {arXiv:1902.03368},
  year = {2019}
}
@article{tschandl2018ham10000,
  author = {Tschandl, Philipp and Rosendahl, Cliff and Kittler, Harald},
  title = {The {HAM10000} dataset, a large collection of multi-source dermatoscopic images of common
           pigmented skin lesions},
  journal = {Scientific Data},
  volume = {5},
  pages = {180161},
  year = {2018}
}"""

    def list_items(self, source_dir):
        items = []
        for split, part in _PARTS.items():
            images = base.find_folder(source_dir, f"ISIC2018_Task1-2_{part}_Input")
            if images:
                masks = images.with_name(f"ISIC2018_Task1_{part}_GroundTruth")
                items += base.items_of_folders(
                    images, masks, ending="_segmentation", extensions=(".jpg",), split=split
                )
        return items
