"""FetReg 2021, task 1: vessels, tool and fetus in fetoscopy.

    FetReg2021_dataset/Train/Train_FetReg2021_Task1_Segmentation/Video001/images/*.png
    FetReg2021_dataset/Train/Train_FetReg2021_Task1_Segmentation/Video001/labels/*.png
    FetReg2021_dataset/Test/.../Video010/{images,labels}/*.png
    FetReg2021_Task1_Segmentation/Video001/{images,labels}/*.png     the training part as of 2021

Labels are class ids: 0 background, 1 vessel, 2 tool, 3 fetus, as in the challenge's own drawing
script. The folders were compared with published listings of the archives, not with the archives:
any folders `images` and `labels` side by side below `Train` and `Test` are read.
"""

import pathlib

from fewshotseg.data.builders import base

_ROOT = "FetReg2021_dataset"
_TRAIN_ONLY = "FetReg2021_Task1_Segmentation"


class Fetreg(base.SegmentationBuilder):
    name = "fetreg"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download the segmentation data (task 1) of FetReg 2021 from
        https://www.synapse.org/#!Synapse:syn25313156 or https://weiss-develop.cs.ucl.ac.uk/fetreg/,
        unpack it into a folder, and give that folder: it then holds
        FetReg2021_dataset/Train/.../Video001/images/ and labels/, or
        FetReg2021_Task1_Segmentation/Video001/images/ and labels/.
    """
    class_names = ("vessel", "tool", "fetus")
    description = (
        "Frames of fetoscopic laser operations for twin-to-twin transfusion syndrome: 2060 "
        "training frames of 18 operations and 658 test frames of 6 others, 320 to 720 pixels, "
        "labelled with vessel, tool and fetus. The group is the video, that is the patient."
    )
    homepage = "https://www.synapse.org/#!Synapse:syn25313156"
    licence = "Not confirmed: see the terms at the download."
    citation = """
@article{bano2021fetreg,
  author = {Bano, Sophia and Casella, Alessandro and Vasconcelos, Francisco and others},
  title = {{FetReg}: Placental Vessel Segmentation and Registration in Fetoscopy Challenge Dataset},
  journal = {arXiv:2106.05923},
  year = {2021}
}
@article{bano2024placental,
  author = {Bano, Sophia and Casella, Alessandro and Vasconcelos, Francisco and others},
  title = {Placental vessel segmentation and registration in fetoscopy: Literature review and
           {MICCAI FetReg2021} challenge findings},
  journal = {Medical Image Analysis},
  volume = {92},
  pages = {103066},
  year = {2024}
}"""

    def list_items(self, source_dir):
        train = base.find_folder(source_dir, f"{_ROOT}/Train", "Train", _TRAIN_ONLY)
        test = base.find_folder(source_dir, f"{_ROOT}/Test", "Test")
        return _videos(train, "train") + _videos(test, "test")


def _videos(folder: pathlib.Path | None, split: str) -> list[base.Item]:
    items = []
    for images in sorted(folder.rglob("images")) if folder else ():
        video = images.parent.name
        for item in base.items_of_folders(images, images.with_name("labels")):
            # Published names begin with the video; should some not, they still get unique ids.
            case_id = item.id if item.id.startswith(video) else f"{video}/{item.id}"
            items.append(base.Item(case_id, item.image, item.masks, split, video))
    return items
