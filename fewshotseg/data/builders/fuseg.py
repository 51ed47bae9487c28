"""FUSeg: foot ulcers in photographs.

Foot Ulcer Segmentation Challenge/train/images/0011.png
Foot Ulcer Segmentation Challenge/train/labels/0011.png       RGB, 0 and 255
Foot Ulcer Segmentation Challenge/validation/{images,labels}/
Foot Ulcer Segmentation Challenge/test/images/                without labels: not read
"""

from fewshotseg.data.builders import base

_FOLDER = "Foot Ulcer Segmentation Challenge"


class Fuseg(base.SegmentationBuilder):
    name = "fuseg"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download the repository https://github.com/uwm-bigdata/wound-segmentation, and give its
        folder 'data': it holds 'Foot Ulcer Segmentation Challenge/train/images/' and so on.
    """
    class_names = ("ulcer",)
    description = (
        "Photographs of foot ulcers, 512 x 512 pixels with zero padding: 810 training and 200 "
        "validation images with the outline of the wound; 200 test images have no public labels "
        "and are left out. A few masks are empty. Training and validation share patients, and no "
        "patient ids are published. Ids are 'train/<number>' and 'validation/<number>'."
    )
    homepage = "https://fusc.grand-challenge.org"
    licence = "Unknown; shared publicly with the clinic's permission, says the repository."
    citation = """
@article{wang2022fuseg,
  author = {Wang, Chuanbo and Mahbod, Amirreza and Ellinger, Isabella and others},
  title = {{FUSeg}: The Foot Ulcer Segmentation Challenge},
  journal = {arXiv:2201.00414},
  year = {2022}
}
@article{wang2020fully,
  author = {Wang, Chuanbo and Anisuzzaman, D. M. and Williamson, Victor and others},
  title = {Fully automatic wound segmentation with deep convolutional neural networks},
  journal = {Scientific Reports},
  volume = {10},
  pages = {21897},
  year = {2020}
}"""

    def list_items(self, source_dir):
        candidates = (_FOLDER, f"data/{_FOLDER}", f"wound-segmentation/data/{_FOLDER}")
        root = base.find_folder(source_dir, *candidates)
        items = []
        for split in ("train", "validation") if root else ():
            items += base.items_of_folders(
                root / split / "images", root / split / "labels", split=split, prefix=f"{split}/"
            )
        return items
