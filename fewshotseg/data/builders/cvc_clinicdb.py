"""CVC-ClinicDB: polyps in colonoscopy.

    CVC-ClinicDB/Original/1.tif
    CVC-ClinicDB/Ground Truth/1.tif
    CVC-ClinicDB/metadata.csv                optional: columns frame_id and sequence_id

The 612 frames come from 29 sequences, and frames of one sequence look alike. The archive does not
say which frame is of which sequence, and the lists in circulation could not be compared with an
official one; so the group is empty unless a `metadata.csv` (as some mirrors add it) tells. Without
it, only near-duplicates are kept on one side of a split.
"""

import csv
import pathlib

from fewshotseg.data.builders import base
from fewshotseg.errors import InputError


class CvcClinicDb(base.SegmentationBuilder):
    name = "cvc_clinicdb"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Download CVC-ClinicDB.rar from https://polyp.grand-challenge.org/CVCClinicDB/, unpack it
        into a folder, and give that folder: it then holds CVC-ClinicDB/Original/ and
        'CVC-ClinicDB/Ground Truth/'.
    """
    class_names = ("polyp",)
    description = (
        "612 frames (384 x 288 pixels) of 29 colonoscopy sequences with the outline of the polyp. "
        "No official split. Frames of one sequence look alike: put a metadata.csv with the columns "
        "frame_id and sequence_id beside 'Original' to keep sequences together."
    )
    homepage = "https://polyp.grand-challenge.org/CVCClinicDB/"
    licence = "Unknown; the owners ask for the citation."
    citation = """
@article{bernal2015wmdova,
  author = {Bernal, Jorge and S{\\'a}nchez, F. Javier and Fern{\\'a}ndez-Esparrach, Gloria and
            Gil, Debora and Rodr{\\'i}guez, Cristina and Vilari{\\~n}o, Fernando},
  title = {{WM-DOVA} maps for accurate polyp highlighting in colonoscopy: Validation vs. saliency maps
           from physicians},
  journal = {Computerized Medical Imaging and Graphics},
  volume = {43},
  pages = {99--111},
  year = {2015}
}"""

    def list_items(self, source_dir):
        images = base.find_folder(source_dir, "CVC-ClinicDB/Original", "Original")
        if images is None:
            return []
        sequence_of = _sequences(images.with_name("metadata.csv"))
        items = base.items_of_folders(images, images.with_name("Ground Truth"))
        return [
            base.Item(item.id, item.image, item.masks, group=sequence_of.get(item.id, ""))
            for item in items
        ]


def _sequences(path: pathlib.Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"frame_id", "sequence_id"} <= set(reader.fieldnames or ()):
            raise InputError(
                f"{path}: the columns frame_id and sequence_id are missing: add them or remove "
                "this file."
            )
        return {row["frame_id"]: f"sequence {row['sequence_id']}" for row in reader}
