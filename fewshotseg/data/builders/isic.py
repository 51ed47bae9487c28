"""ISIC 2017 (part 1) and ISIC 2018 (task 1): skin lesions, dermoscopy."""

from fewshotseg.data.builders import base

_LICENCE = "As stated on the page of the challenge; the images come from the ISIC Archive."


class _Isic(base.SegmentationBuilder):
    CLASS_NAMES = ("lesion",)
    LICENCE = _LICENCE
    FOLDERS: tuple[tuple[str, str, str], ...] = ()  # split, images, masks

    def list_cases(self, root):
        for split, images, masks in self.FOLDERS:
            for image in base.images(root / images):
                if image.stem.endswith("_superpixels"):
                    continue
                mask = base.find(root / masks, f"{image.stem}_segmentation")
                yield base.CaseFiles(image.stem, split, image, mask)


class Isic2017(_Isic):
    DESCRIPTION = "ISIC 2017 challenge, part 1: lesion segmentation, 2,000 + 150 + 600 images."
    HOMEPAGE = "https://challenge.isic-archive.com/data/#2017"
    CITATION = "Codella et al., ISBI 2018, arXiv:1710.05006"
    DOWNLOAD = (
        "Get the training, validation and test data and the part 1 ground truth of ISIC 2017 from "
        "https://challenge.isic-archive.com/data/#2017 and unpack all zips into one folder."
    )
    FOLDERS = tuple(
        (split, f"ISIC-2017_{name}_{data}", f"ISIC-2017_{name}_Part1_GroundTruth")
        for split, name, data in (
            ("train", "Training", "Data"),
            ("validation", "Validation", "Data"),
            ("test", "Test_v2", "Data"),
        )
    )


class Isic2018(_Isic):
    DESCRIPTION = "ISIC 2018 challenge, task 1: lesion segmentation, 2,594 + 100 + 1,000 images."
    HOMEPAGE = "https://challenge.isic-archive.com/data/#2018"
    CITATION = "Codella et al., 2019, arXiv:1902.03368; Tschandl et al., Sci Data 5, 180161 (2018)"
    DOWNLOAD = (
        "Get the task 1 and 2 input and the task 1 ground truth of ISIC 2018 from "
        "https://challenge.isic-archive.com/data/#2018 and unpack all zips into one folder."
    )
    FOLDERS = tuple(
        (split, f"ISIC2018_Task1-2_{name}_Input", f"ISIC2018_Task1_{name}_GroundTruth")
        for split, name in (("train", "Training"), ("validation", "Validation"), ("test", "Test"))
    )
