"""A CT series as files, a slice each, in any direction and with any fault."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_series(
    folder,
    values,
    row=(1.0, 0.0, 0.0),
    column=(0.0, 1.0, 0.0),
    step=(0.0, 0.0, 2.0),
    origin=(-20.0, -30.0, 5.0),
    spacing=(0.7, 0.9),
    name="series",
    skip=(),
    shuffled=True,
    **changes,
):
    """Writes int16 `[slices, rows, columns]`; slice i lies at `origin + i * step`. The folder.

    Args:
      row: direction in which the column index grows; `column` likewise, of the row index.
      spacing: between rows, between columns, in mm.
      name: of the series; the same name is the same UID.
      skip: numbers of slices that are left out.
      shuffled: names of files that say nothing of the order.
      **changes: fields of all headers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, plane in enumerate(values):
        if i in skip:
            continue
        one = Dataset()
        one.SOPClassUID, one.Modality = CTImageStorage, "CT"
        one.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(i), str(folder)])
        one.SeriesInstanceUID = generate_uid(entropy_srcs=["series", name])
        one.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
        one.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "7", "A^B", "", ""
        one.StudyDate = one.StudyTime = one.AccessionNumber = one.StudyID = ""
        one.ReferringPhysicianName = one.Manufacturer = one.PositionReferenceIndicator = ""
        one.SeriesDescription, one.SeriesNumber, one.InstanceNumber = name, 3, i + 1
        one.ImagePositionPatient = [float(x) for x in np.add(origin, np.multiply(i, step))]
        one.ImageOrientationPatient = [*map(float, row), *map(float, column)]
        one.PixelSpacing, one.SliceThickness = list(spacing), 2.0
        one.Rows, one.Columns = plane.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.RescaleIntercept, one.RescaleSlope = -1024, 1
        for field, value in changes.items():
            setattr(one, field, value)
        one.PixelData = (plane.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        number = (i * 7) % 23 if shuffled else i
        one.save_as(folder / f"{name}_{number:03d}.dcm", enforce_file_format=True)
    return folder
