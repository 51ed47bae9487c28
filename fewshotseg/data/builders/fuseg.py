"""FUSeg: foot ulcers, photographs."""

from fewshotseg.data.builders import base


class Fuseg(base.SegmentationBuilder):
    CLASS_NAMES = ("ulcer",)
    DESCRIPTION = "Foot Ulcer Segmentation Challenge 2021: 810 + 200 labelled photographs."
    HOMEPAGE = "https://fusc.grand-challenge.org"
    LICENCE = "No licence file; shared publicly with the clinic's permission."
    CITATION = "Wang et al., arXiv:2201.00414; Wang et al., Sci Rep 10, 21897 (2020)"
    DOWNLOAD = (
        "Get the folder 'Foot Ulcer Segmentation Challenge' from the repository "
        "uwm-bigdata/wound-segmentation (data/) and put it into the folder."
    )

    def list_cases(self, root):
        for split in ("train", "validation"):  # the labels of the official test part are not public
            folder = root / "Foot Ulcer Segmentation Challenge" / split
            for image in base.images(folder / "images"):
                mask = base.find(folder / "labels", image.stem)
                yield base.CaseFiles(f"{split}/{image.stem}", split, image, mask)
