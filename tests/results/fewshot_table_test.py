"""The table of benchmarks/fewshot.py on rows that are known by hand."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import json, pathlib, sys
sys.path.insert(0, "benchmarks")
import fewshot
rows, path = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
print(fewshot.table(rows))
for row in rows + rows[:1]:
    fewshot.append(row, path)
try:
    fewshot.append({**rows[0], "more": 1}, path)
except ValueError as error:
    print(error)
"""


def test_steps_are_not_mixed_and_hd95_stands_beside_dice(tmp_path):
    """real_only at 400 and 3200 steps are two rows, and each method is compared at its steps."""
    rows = [
        dict(
            dataset="busi",
            segmenter="unet",
            method=m,
            seed=s,
            steps=n,
            dice=dice,
            hd95=hd95,
            seconds=10,
        )
        for m, s, n, dice, hd95 in (
            ("real_only", 0, 400, 0.5, 70.0),
            ("real_only", 1, 400, 0.6, 60.0),
            ("end2end", 0, 400, 0.55, 72.0),
            ("end2end", 1, 400, 0.65, 64.0),
            ("real_only", 0, 3200, 0.7, 50.0),
            ("end2end", 0, 3200, 0.69, 51.0),
        )
    ]
    path = tmp_path / "fewshot.csv"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(rows), str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2:6] == [
        "| busi | unet | 400 | real_only | 0.550 ± 0.071 |  | 65.0 ± 7.1 |  | 2 | 10 |",
        "| busi | unet | 400 | end2end | 0.600 ± 0.071 | +0.050 ± 0.000 "
        "| 68.0 ± 5.7 | +3.0 ± 1.4 | 2 | 10 |",
        "| busi | unet | 3200 | real_only | 0.700 |  | 50.0 |  | 1 | 10 |",
        "| busi | unet | 3200 | end2end | 0.690 | -0.010 | 51.0 | +1.0 | 1 | 10 |",
    ]
    assert "has other columns" in lines[6]
    assert len(path.read_text().splitlines()) == 1 + len(rows)  # none twice
