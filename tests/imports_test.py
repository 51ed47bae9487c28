"""Who may import whom: the layers, checked on the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fewshotseg"
FILES = sorted(PACKAGE.rglob("*.py"))

# Layer of every module; a module imports only from lower layers, or from its own package of helpers.
LAYERS = {
    0: {"types", "errors"},
    1: {
        "hypergradient", "implicit", "evolution", "inner_gradient", "losses", "metrics", "augment",
        "figures", "models.layers", "state",
        "parallel", "models.search_space", "models.generator", "models.discriminator", "models.unet",
    },
    2: {"genseg"},
    3: {
        "model_factory", "optimizers", "data", "checkpoint", "summaries", "run_files", "experiment",
        "cases", "config_check", "estimator_factory",
        "report_inputs", "report_scores", "report_tables", "report_plots",
    },
    4: {"stage", "train", "evaluate", "predict", "trained", "report", "diagnose"},
    5: {"commands"},
}  # fmt: skip
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def layer_of(name):
    return LAYER.get(name, LAYER.get(name.partition(".")[0]))


def imported(path):
    """Absolute names of everything a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def internal(path):
    """Modules of the package that a file imports."""
    known = {module_name(file) for file in FILES}
    found = set()
    for name in imported(path):
        if name.startswith("fewshotseg."):
            name = name.removeprefix("fewshotseg.")
            found.add(name if name in known else name.rpartition(".")[0])
    return found - {""}


@pytest.mark.parametrize("path", [f for f in FILES if f.name != "__init__.py"], ids=module_name)
def test_arrows_point_down(path):
    name = module_name(path)
    assert layer_of(name) is not None, f"give {name} a layer"
    for other in internal(path):
        assert layer_of(other) <= layer_of(name), f"{name} imports {other}, which is above it"


@pytest.mark.parametrize("name", ["hypergradient", "implicit", "evolution", "inner_gradient"])
def test_the_maths_can_be_lifted_out(name):
    allowed = ("jax", "collections.abc", "math", "typing", "fewshotseg.hypergradient")
    assert all(n.startswith(allowed) for n in imported(PACKAGE / f"{name}.py"))


def test_the_method_knows_no_network_and_no_config():
    assert internal(PACKAGE / "genseg.py") <= {
        "implicit",
        "inner_gradient",
        "losses",
        "state",
        "types",
    }


def test_data_knows_no_network():
    for path in (PACKAGE / "data").rglob("*.py"):
        assert not any(n.startswith("models") for n in internal(path)), path


def test_only_one_file_says_pmap():
    calls = [p.name for p in FILES if "pmap(" in p.read_text()]
    assert calls == ["parallel.py"]


def test_only_the_command_line_uses_absl():
    assert [p.name for p in FILES if any(n.startswith("absl") for n in imported(p))] == []


def test_the_report_needs_no_jax():
    for path in PACKAGE.glob("report*.py"):
        assert not any(n.startswith("jax") for n in imported(path)), path
        assert internal(path) <= {
            "figures", "metrics", "errors", "report_inputs", "report_scores", "report_tables",
            "report_plots", "types",
        }  # fmt: skip


def test_evaluation_does_not_need_training():
    for name in ("evaluate", "predict", "trained"):
        assert not internal(PACKAGE / f"{name}.py") & {"train", "stage"}


def test_configs_do_not_import_the_package():
    for path in (ROOT / "configs").glob("*.py"):
        assert not any(n.startswith("fewshotseg") for n in imported(path)), path


def test_nothing_leaks_the_machine():
    for path in [*FILES, *(ROOT / "configs").glob("*.py"), ROOT / "run.py", ROOT / "README.md"]:
        text = path.read_text()
        assert "/work/" not in text and "/tmp/" not in text, path
