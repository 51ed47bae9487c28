"""FetReg 2021: placental vessels, fetoscopy.

The layout (VideoXXX/images, VideoXXX/labels, equal names) and the order of the classes (1 vessel, 2
tool, 3 fetus) are those of the challenge's description; they have not been tried on the real archive.
"""

from fewshotseg.data.builders import base


class Fetreg(base.SegmentationBuilder):
    CLASS_NAMES = ("vessel", "tool", "fetus")
    DESCRIPTION = "2,060 fetoscopy frames from 18 procedures with vessels, tools and fetus."
    HOMEPAGE = "https://fetreg2021.grand-challenge.org"
    LICENCE = "CC BY-NC-SA 4.0, as stated by the challenge."
    CITATION = "Bano et al., Med Image Anal 92, 103066 (2024), arXiv:2206.12512"
    DOWNLOAD = (
        "Get the segmentation part of FetReg 2021 from https://fetreg2021.grand-challenge.org and "
        "unpack it, so that the folder holds Train/Video001/images and Train/Video001/labels."
    )

    def list_cases(self, root):
        for split, folder in (("train", "Train"), ("test", "Test")):
            for video in sorted((root / folder).glob("Video*")):
                for image in base.images(video / "images"):
                    mask = base.find(video / "labels", image.stem)
                    case_id = f"{video.name}/{image.stem}"
                    yield base.CaseFiles(case_id, split, image, mask, group=video.name)
