"""BUSI: breast tumours, ultrasound. No official split."""

import re

from fewshotseg.data.builders import base


class Busi(base.SegmentationBuilder):
    """Benign and malignant cases; the 133 'normal' ones have no tumour and are left out."""

    CLASS_NAMES = ("tumour",)
    CHANNELS = 1
    DESCRIPTION = (
        "647 breast ultrasound images with a tumour; several masks of one image are joined."
    )
    HOMEPAGE = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
    LICENCE = "See the data set's page."
    CITATION = "Al-Dhabyani et al., Data in Brief 28, 104863 (2020)"
    DOWNLOAD = (
        "Get Dataset_BUSI.zip from https://scholar.cu.edu.eg/?q=afahmy/pages/dataset and unpack it, so "
        "that the folder holds Dataset_BUSI_with_GT/benign and malignant."
    )

    def list_cases(self, root):
        for kind in ("benign", "malignant"):
            folder = root / "Dataset_BUSI_with_GT" / kind
            paths = base.images(folder)
            for image in paths:
                if re.search(r"_mask(_\d+)?$", image.stem):
                    continue
                pattern = re.compile(re.escape(image.stem) + r"_mask(_\d+)?")
                masks = tuple(path for path in paths if pattern.fullmatch(path.stem))
                yield base.CaseFiles(image.stem, "train", image, masks)
