"""Pictures of the worst, the middle and the best cases of an evaluation."""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fewshotseg import figures
from fewshotseg.results import metrics
from fewshotseg.results.predictor import Predictor, segment_images
from fewshotseg.types import CaseSource

_EXPLAINED = {
    "reference_empty": " (false alarm: empty reference)",
    "prediction_empty": " (nothing predicted)",
}


def choose(
    dice: Mapping[str, float], missed: Mapping[str, float] | None = None
) -> list[tuple[str, str]]:
    """Names such as 'worst_1' with case ids; no case twice, undefined ones left out.

    Up to eight of the worst, four from the middle and four of the best. Of equal Dice (often 0),
    the case with more `missed`, pixels wrongly labelled, is the worse.
    """
    missed = missed or {}
    defined = [i for i in dice if not math.isnan(dice[i])]
    order = sorted(defined, key=lambda i: (dice[i], -missed.get(i, 0), i))
    third = max(1, len(order) // 3)
    worst, rest = order[: min(8, third)], order[min(8, third) :]
    count = min(4, third)
    best, rest = rest[::-1][:count], rest[: max(0, len(rest) - count)]
    first = max(0, (len(rest) - count) // 2)
    median = rest[first : first + count]
    return [
        (f"{kind}_{number}", case_id)
        for kind, ids in (("worst", worst), ("median", median), ("best", best))
        for number, case_id in enumerate(ids, start=1)
    ]


def save(
    predictor: Predictor,
    source: CaseSource,
    rows: Sequence[Mapping[str, Any]],
    output_dir: pathlib.Path,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Draws prediction and reference of the chosen cases into OUTPUT_DIR/examples.

    Args:
      predictor: the model that was measured.
      source: of the cases.
      rows: of cases.json.
      output_dir: of the evaluation.
      batch_size: of the network.

    Returns:
      `file`, `case` and `dice` of every picture.
    """
    folder = output_dir / "examples"
    by_case = {i: (metrics.mean_over_classes(r), r) for i, r in metrics.rows_by_case(rows).items()}
    dice = {i: mean["dice"] for i, (mean, _) in by_case.items()}
    missed = {i: sum(map(_wrong_pixels, r)) for i, (_, r) in by_case.items()}
    chosen = choose(dice, missed)
    for kind in ("worst", "median", "best"):
        for old in folder.glob(f"{kind}_*.png"):
            old.unlink()
    saved = []
    # Segmented a second time, because the masks of a large test set do not fit into memory.
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        cases = [source.load(case_id) for _, case_id in part]
        pixels, labels = [case.image for case in cases], [case.id for case in cases]
        spacings = [case.spacing for case in cases]
        masks = segment_images(predictor, pixels, labels, batch_size, spacings)
        for (name, case_id), case, mask in zip(part, cases, masks, strict=True):
            file_name = f"{name}_{_safe(case_id)}.png"
            status = by_case[case_id][0]["status"]
            title = f"Dice {dice[case_id]:.2f}{_EXPLAINED.get(status, '')}   {case_id}"
            figures.save_overlay(
                case.image, mask, folder / file_name, case.mask, title=title, spacing=case.spacing
            )
            saved.append({"file": f"examples/{file_name}", "case": case_id, "dice": dice[case_id]})
    return saved


def _wrong_pixels(row: Mapping[str, Any]) -> int:
    return row["reference_size"] + row["prediction_size"] - 2 * row["intersection"]


def _safe(case_id: str) -> str:
    """A case id as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", case_id).strip("._")[-80:] or "case"
