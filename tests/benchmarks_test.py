"""The scripts of benchmarks/ against the package, without running them: PyTorch need not be there."""

import ast
import importlib
import pathlib
import types

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def our_imports(node):
    """The `from fewshotseg... import ...` and `from configs import ...` in it, however deep."""
    for part in ast.walk(node):
        if isinstance(part, ast.ImportFrom):
            if (part.module or "").partition(".")[0] in ("fewshotseg", "configs"):
                yield part


def lookup(owner, name):
    """An attribute or a submodule.

    Raises:
      AttributeError: there is neither.
    """
    if not hasattr(owner, name) and hasattr(owner, "__path__"):
        try:
            return importlib.import_module(f"{owner.__name__}.{name}")
        except ModuleNotFoundError:
            pass
    return getattr(owner, name)


def value_of(node, names):
    """What `a` or `a.b.c` is, as far as it leads through our modules; None for all else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    owner = value_of(node.value, names) if isinstance(node, ast.Attribute) else None
    return lookup(owner, node.attr) if isinstance(owner, types.ModuleType) else None


def faults(source):
    """Line -> the fault there: names that we do not have."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in our_imports(function)}
    found = {}
    for scope in (tree, *functions):  # a name that one function imports is another thing elsewhere
        names = {}
        for node in our_imports(scope):
            if scope is tree and id(node) in inside:
                continue
            for alias in node.names:
                try:
                    module = importlib.import_module(node.module)
                    names[alias.asname or alias.name] = lookup(module, alias.name)
                except (ModuleNotFoundError, AttributeError) as error:
                    found[node.lineno] = str(error)
        for node in ast.walk(scope):
            try:
                value_of(node, names)
            except AttributeError as error:
                found[node.lineno] = str(error)
    return found


def root_is_on_the_path(source):
    """Whether a statement of the module says so, before anything of ours is imported."""
    tree = ast.parse(source)
    first = min((node.lineno for node in our_imports(tree)), default=None)
    said = [n.lineno for n in tree.body if ast.unparse(n).startswith(("sys.path[", "sys.path."))]
    return first is None or bool(said) and said[0] < first


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_what_it_asks_for(path):
    source = path.read_text()
    assert not faults(source)
    assert root_is_on_the_path(source)


def test_what_is_missing_is_found():
    source = "from fewshotseg.genseg import levels, state\n\nlevels.inner_step(levels.Method)\n"
    assert faults(source).keys() == {1, 3}
    assert not root_is_on_the_path(source)
    assert root_is_on_the_path(f"import sys\nsys.path.insert(0, '.')\n{source}")
