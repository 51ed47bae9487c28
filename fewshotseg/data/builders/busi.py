"""BUSI: breast tumours in ultrasound.

    Dataset_BUSI_with_GT/benign/benign (1).png
    Dataset_BUSI_with_GT/benign/benign (1)_mask.png
    Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png        another lesion of the same image
    Dataset_BUSI_with_GT/malignant/...
    Dataset_BUSI_with_GT/normal/...                          empty masks

`busi` holds benign and malignant tumours; `busi_with_normal` the normal breasts as well.
"""

import re

from fewshotseg.data.builders import base

_MASK = re.compile(r"_mask(_\d+)?$")


class Busi(base.SegmentationBuilder):
    name = "busi"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download Dataset_BUSI.zip from https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, unpack it
        into a folder, and give that folder: it then holds Dataset_BUSI_with_GT/benign/ and so on.
    """
    folders = ("benign", "malignant")
    class_names = ("tumour",)
    description = (
        "Ultrasound images of breast tumours with their outlines: 437 benign and 210 malignant; "
        "several lesions of one image are joined. No official split, no patient ids. Known faults "
        "(Pawlowska et al., Data in Brief 2023): duplicates, some under both classes, drawn "
        "calipers, pictures of the axilla. Ids are 'benign (1)', 'malignant (1)', ..."
    )
    homepage = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
    licence = "Unknown."
    citation = """
@article{aldhabyani2020busi,
  author = {Al-Dhabyani, Walid and Gomaa, Mohammed and Khaled, Hussien and Fahmy, Aly},
  title = {Dataset of breast ultrasound images},
  journal = {Data in Brief},
  volume = {28},
  pages = {104863},
  year = {2020}
}"""

    def list_items(self, source_dir):
        root = base.find_folder(source_dir, "Dataset_BUSI_with_GT")
        items = []
        for folder in self.folders if root else ():
            files = base.image_files(root / folder)
            masks = {}
            for stem, path in files.items():
                if _MASK.search(stem):
                    masks.setdefault(_MASK.sub("", stem), []).append(path)
            for stem, path in files.items():
                if not _MASK.search(stem):
                    expected = [path.with_name(f"{stem}_mask.png")]
                    items.append(base.Item(stem, path, tuple(masks.get(stem, expected))))
        return items


class BusiWithNormal(Busi):
    name = "busi_with_normal"
    folders = ("benign", "malignant", "normal")
    description = Busi.description + " Also 133 normal images, 'normal (1)', ..., with empty masks."
