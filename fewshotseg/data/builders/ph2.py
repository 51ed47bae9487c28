"""PH2: melanocytic lesions in dermoscopy.

PH2Dataset/PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp
PH2Dataset/PH2 Dataset images/IMD002/IMD002_lesion/IMD002_lesion.bmp
"""

from fewshotseg.data.builders import base

_FOLDER = "PH2 Dataset images"


class Ph2(base.SegmentationBuilder):
    name = "ph2"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download PH2Dataset.rar from https://www.fc.up.pt/addi/ph2%20database.html (on request),
        unpack it into a folder, and give that folder: it then holds
        'PH2Dataset/PH2 Dataset images/IMD002/...'.
    """
    class_names = ("lesion",)
    description = (
        "200 dermoscopic images (768 x 560 pixels, one device, one hospital) of common naevi, "
        "atypical naevi and melanomas with the outline of the lesion. Mostly used as a test set "
        "from outside the training domain. No official split, no patient ids."
    )
    homepage = "https://www.fc.up.pt/addi/ph2%20database.html"
    licence = "Free for research and benchmarking, on the owners' terms; not confirmed."
    citation = """
@inproceedings{mendonca2013ph2,
  author = {Mendon{\\c{c}}a, Teresa and Ferreira, Pedro M. and Marques, Jorge S. and
            Mar{\\c{c}}al, Andr{\\'e} R. S. and Rozeira, Jorge},
  title = {{PH2} - A dermoscopic image database for research and benchmarking},
  booktitle = {35th Annual International Conference of the IEEE Engineering in Medicine and Biology
               Society (EMBC)},
  pages = {5437--5440},
  year = {2013}
}"""

    def list_items(self, source_dir):
        root = base.find_folder(source_dir, f"PH2Dataset/{_FOLDER}", _FOLDER)
        items = []
        for folder in sorted(root.iterdir()) if root else ():
            images = folder / f"{folder.name}_Dermoscopic_Image"
            masks = folder / f"{folder.name}_lesion"
            items += base.items_of_folders(images, masks, ending="_lesion")
        return items
