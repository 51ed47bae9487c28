"""DRIVE: retinal vessels, fundus photographs."""

from fewshotseg.data.builders import base


class Drive(base.SegmentationBuilder):
    """The first observer's masks; the masks of the field of view are not used.

    The official test archive may come without masks; its images are then left out.
    """

    CLASS_NAMES = ("vessel",)
    DESCRIPTION = "40 fundus photographs of a diabetic retinopathy screening, 20 + 20."
    HOMEPAGE = "https://drive.grand-challenge.org"
    LICENCE = "See the data set's page."
    CITATION = "Staal et al., IEEE TMI 23(4), 501-509 (2004)"
    DOWNLOAD = (
        "Get DRIVE from https://drive.grand-challenge.org and unpack it, so that the folder holds "
        "DRIVE/training/images and DRIVE/training/1st_manual."
    )

    def list_cases(self, root):
        for split, folder in (("train", "training"), ("test", "test")):
            masks = root / "DRIVE" / folder / "1st_manual"
            if split == "test" and not masks.is_dir():
                continue
            for image in base.images(root / "DRIVE" / folder / "images"):
                mask = base.find(masks, f"{image.stem.split('_')[0]}_manual1")
                yield base.CaseFiles(image.stem, split, image, mask)
