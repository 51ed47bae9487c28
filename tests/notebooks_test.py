"""The notebooks run, at a toy size, and their two forms say the same."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAYS = {  # what each prints if it comes that far
    "01_hypergradient": "central differences",
    "02_train": "report.html: ",
    "03_search_space": "after discretisation",
    "04_results": "real_only minus unet_plain",
    "05_your_own_bilevel_problem": "twenty, hypergradient",
}


def _cells_of_script(text):
    """Sources of the cells of a jupytext percent script; markdown without its comment signs."""
    cells = []
    for part in text.split("\n# %%")[1:]:
        head, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        cells.append("\n".join(lines))
    return cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_script_are_the_same(path):
    cells = json.loads(path.read_text())["cells"]
    assert ["".join(cell["source"]) for cell in cells] == _cells_of_script(
        path.with_suffix(".py").read_text()
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_run_from_a_clean_kernel(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", ()) for o in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, environment, tmp_path):
    script = path.with_suffix(".py")
    environment = {
        **environment, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "FEWSHOTSEG_TOY": "1"
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[path.stem] in done.stdout


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(SAYS)
