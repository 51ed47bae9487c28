"""Tables of the runs of generators.py: Dice by family and method, and what the synthetic pairs are like.

python benchmarks/generators_table.py runs/generators
"""

import collections
import math
import pathlib
import statistics
import sys

import fewshot_table  # benchmarks/fewshot_table.py
from absl import app

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

MEASURED = ("consistency", "nearest_correlation")


def case_rows(root: pathlib.Path) -> list[dict]:
    """Those of `fewshot_table.read_runs`, the variant in the place of the segmenter."""
    rows = []
    for path in sorted(root.glob("*/*/draw_*")):
        cases, _ = fewshot_table.read_runs([path])
        rows += [row | {"segmenter": path.parent.name} for row in cases]
    return rows


def pair_table(root: pathlib.Path) -> str:
    """Medians of the pairs that were measured, over all draws, by data set, variant and method."""
    from fewshotseg.data.look_alikes import DUPLICATE_CORRELATION
    from fewshotseg.results.report import inputs

    found = collections.defaultdict(list)
    for path in sorted(root.glob("*/*/draw_*")):
        run = inputs.read_run(path)
        for method, measured in run.pairs.items():
            found[run.name, path.parent.name, method] += measured["pairs"]
    head = ("data set", "generator: method", "pairs", "consistency", "nearest", "near copies")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for (dataset, variant, method), pairs in found.items():
        consistency, nearest = (
            [pair[name] for pair in pairs if isinstance(pair[name], float | int)]
            for name in MEASURED
        )
        copies = statistics.fmean(c >= DUPLICATE_CORRELATION for c in nearest)
        cells = [f"{statistics.median(x) if x else math.nan:.2f}" for x in (consistency, nearest)]
        cells = (dataset, f"{variant}: {method}", str(len(pairs)), *cells, f"{100 * copies:.0f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv):
    if len(argv) != 2:
        sys.exit("generators_table.py: give the folder of runs.")
    root = pathlib.Path(argv[1])
    table = fewshot_table.table(case_rows(root), "real_only")
    print(table.replace("segmenter: method", "generator: method"))
    print()
    print(pair_table(root))


if __name__ == "__main__":
    app.run(main)
