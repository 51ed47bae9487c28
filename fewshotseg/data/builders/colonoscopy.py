"""Kvasir-SEG and CVC-ClinicDB: polyps, colonoscopy. No official splits in the archives."""

from fewshotseg.data.builders import base


class KvasirSeg(base.SegmentationBuilder):
    CLASS_NAMES = ("polyp",)
    DESCRIPTION = "1,000 polyp images with masks; both are JPEG files."
    HOMEPAGE = "https://datasets.simula.no/kvasir-seg/"
    LICENCE = "Research and education."
    CITATION = "Jha et al., MMM 2020, doi 10.1007/978-3-030-37734-2_37"
    DOWNLOAD = (
        "Get kvasir-seg.zip from https://datasets.simula.no/kvasir-seg/ and unpack it, so that the "
        "folder holds Kvasir-SEG/images and Kvasir-SEG/masks."
    )

    def list_cases(self, root):
        for image in base.images(root / "Kvasir-SEG" / "images"):
            mask = base.find(root / "Kvasir-SEG" / "masks", image.stem)
            yield base.CaseFiles(image.stem, "train", image, mask)


class CvcClinicdb(base.SegmentationBuilder):
    CLASS_NAMES = ("polyp",)
    DESCRIPTION = "612 frames from 29 colonoscopy sequences."
    HOMEPAGE = "https://polyp.grand-challenge.org/CVCClinicDB/"
    LICENCE = "Research; see the data set's page."
    CITATION = (
        "Bernal et al., Comput Med Imaging Graph 43 (2015), doi 10.1016/j.compmedimag.2015.02.007"
    )
    DOWNLOAD = (
        "Get CVC-ClinicDB from https://polyp.grand-challenge.org/CVCClinicDB/ and unpack it, so that "
        "the folder holds Original and 'Ground Truth'."
    )

    def list_cases(self, root):
        # Which frames make a sequence is not in the archive, so neighbours are not grouped.
        for image in base.images(root / "Original"):
            mask = base.find(root / "Ground Truth", image.stem)
            yield base.CaseFiles(image.stem.zfill(3), "train", image, mask)
