"""PH2: skin lesions, dermoscopy, 200 images from one hospital. No official split."""

from fewshotseg.data.builders import base


class Ph2(base.SegmentationBuilder):
    CLASS_NAMES = ("lesion",)
    DESCRIPTION = "200 dermoscopic images of melanocytic lesions, Hospital Pedro Hispano."
    HOMEPAGE = "https://www.fc.up.pt/addi/ph2%20database.html"
    LICENCE = "Research and education; see the data set's page."
    CITATION = "Mendonca et al., EMBC 2013, doi 10.1109/EMBC.2013.6610779"
    DOWNLOAD = (
        "Ask for PH2 at https://www.fc.up.pt/addi/ph2%20database.html and unpack it, so that the "
        "folder holds 'PH2Dataset/PH2 Dataset images/IMD002/...'."
    )

    def list_cases(self, root):
        cases = root / "PH2Dataset" / "PH2 Dataset images"
        for folder in sorted(cases.iterdir()) if cases.is_dir() else ():
            name = folder.name
            for image in base.find(folder / f"{name}_Dermoscopic_Image", name):
                mask = base.find(folder / f"{name}_lesion", f"{name}_lesion")
                yield base.CaseFiles(name, "train", image, mask)
