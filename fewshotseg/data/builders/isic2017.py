"""ISIC 2017, part 1: skin lesions in dermoscopy.

    ISIC-2017_Training_Data/ISIC_0000000.jpg
    ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png
    ISIC-2017_Validation_Data/                     ISIC-2017_Validation_Part1_GroundTruth/
    ISIC-2017_Test_v2_Data/                        ISIC-2017_Test_v2_Part1_GroundTruth/

The folders of images also hold `_superpixels.png` files and a table; these are not read.
"""

from fewshotseg.data.builders import base

_PARTS = {"train": "Training", "validation": "Validation", "test": "Test_v2"}


class Isic2017(base.SegmentationBuilder):
    name = "isic2017"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download 'Training Data', 'Training Ground Truth' (part 1) and, if you want them, the
        validation and test parts from https://challenge.isic-archive.com/data/#2017, unpack all
        zip files into one folder, and give that folder: it then holds
        ISIC-2017_Training_Data/ and ISIC-2017_Training_Part1_GroundTruth/.
    """
    class_names = ("lesion",)
    description = (
        "Dermoscopic images of skin lesions with the outline of the lesion: 2000 training, 150 "
        "validation and 600 test images of the ISIC 2017 challenge, part 1. No patient ids are "
        "published. Images of one lesion may occur more than once."
    )
    homepage = "https://challenge.isic-archive.com/landing/2017/"
    licence = "Believed to be CC0, not confirmed: see https://challenge.isic-archive.com/data/#2017"
    citation = """
@inproceedings{codella2018isic2017,
  author = {Codella, Noel C. F. and Gutman, David and Celebi, M. Emre and others},
  title = {Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the 2017 International
           Symposium on Biomedical Imaging (ISBI)},
  booktitle = {IEEE International Symposium on Biomedical Imaging},
  year = {2018},
  note = {arXiv:1710.05006}
}"""

    def list_items(self, source_dir):
        items = []
        for split, part in _PARTS.items():
            images = base.find_folder(source_dir, f"ISIC-2017_{part}_Data")
            if images:
                masks = images.with_name(f"ISIC-2017_{part}_Part1_GroundTruth")
                items += base.items_of_folders(
                    images, masks, ending="_segmentation", extensions=(".jpg",), split=split
                )
        return items
