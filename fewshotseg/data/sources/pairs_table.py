"""Images and masks that belong together, listed in a CSV file."""

import csv
import os
import pathlib

from fewshotseg.data.sources.pairing import Fault, Pairs, same_id
from fewshotseg.errors import InputError


def read_pairs(table: pathlib.Path) -> Pairs:
    """Pairs listed in a CSV file with the columns `image`, `mask` and, if there are any, `group`.

    Paths are relative to the file's folder; several masks of one image are joined by ';'. The id of
    a case is the path of its image without extension.

    Raises:
      InputError: the table cannot be read, or lacks a column.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{table}: the table cannot be read ({reason}).") from error
    if not {"image", "mask"} <= set(reader.fieldnames or ()):
        raise InputError(
            f"{table}: the first line must name the columns image, mask and, if you like, group, "
            "separated by commas."
        )
    found = Pairs()
    for row in rows:
        image = table.parent / (row["image"] or "").strip()
        names = [name.strip() for name in (row["mask"] or "").split(";") if name.strip()]
        case_id = os.path.splitext((row["image"] or "").strip())[0]
        masks = tuple(table.parent / name for name in names)
        absent = [path for path in (image, *masks) if not path.is_file()]
        if not case_id or not masks:
            line = ",".join(value or "" for value in row.values() if isinstance(value, str | None))
            found.faults.append(Fault("table", table, f"a row lacks its image or mask: {line}"))
        elif absent:
            text = f"listed in {table.name}, but there is no such file"
            found.faults.append(Fault("table", absent[0], text))
        elif case_id in found.images:
            found.faults.append(same_id(case_id, found.images[case_id], image))
        else:
            found.images[case_id], found.masks[case_id] = image, masks
            found.groups[case_id] = (row.get("group") or "").strip()
    return found
