"""Who may import whom: the layers, checked on the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fewshotseg"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms on their floors; a room imports only from lower floors, and from itself.
FLOORS = (
    {"errors"},
    {"types", "labels", "methods", "hypergradient"},
    {"genseg", "models", "files", "fonts", "pictures"},
    {"runs", "figures"},
    {"data"},
    {"results"},
    {"training", "web"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NEVER = {"results": {"training"}, "genseg": {"models"}, "data": {"models", "training"}}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(name):
    """The room of a module: its folder, or the module itself if it lies on the ground floor."""
    return name.partition(".")[0]


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
    room = room_of(name)
    assert room in FLOOR, f"give {room} a floor"
    for other in {room_of(o) for o in internal(path)} - {room}:
        assert FLOOR[other] < FLOOR[room], f"{name} imports {other}, which is not below it"
        assert other not in NEVER.get(room, ()), f"{name} must not import {other}"


def test_the_maths_can_be_lifted_out():
    allowed = ("jax", "collections.abc", "functools", "math", "typing", "fewshotseg.hypergradient")
    for path in (PACKAGE / "hypergradient").glob("*.py"):
        assert all(n.startswith(allowed) for n in imported(path)), path


def test_the_method_knows_no_network_and_no_config():
    for path in (PACKAGE / "genseg").glob("*.py"):
        rooms = {room_of(n) for n in internal(path)}
        assert rooms <= {"genseg", "hypergradient", "types", "errors", "labels"}, path


def test_only_one_file_says_pmap():
    def says_pmap(path):
        nodes = ast.walk(ast.parse(path.read_text()))
        return any(isinstance(node, ast.Attribute) and node.attr == "pmap" for node in nodes)

    assert [path.name for path in FILES if says_pmap(path)] == ["devices.py"]


def test_only_the_command_line_uses_absl():
    assert [p.name for p in FILES if any(n.startswith("absl") for n in imported(p))] == ["cli.py"]


def test_the_report_needs_no_jax():
    for path in (PACKAGE / "results" / "report").glob("*.py"):
        assert not any(n.startswith("jax") for n in imported(path)), path


def test_configs_do_not_import_the_package():
    for path in (ROOT / "configs").glob("*.py"):
        assert not any(n.startswith("fewshotseg") for n in imported(path)), path


def test_text_is_read_and_written_as_utf8():
    """Names of classes and cases are anything, and not every machine has UTF-8 by default."""

    def is_vague(node):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            return False
        if "encoding" in {keyword.arg for keyword in node.keywords}:
            return False
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        as_text = any(mode in ("r", "w", "a", "r+", "w+", "a+") for mode in modes)
        return (node.func.attr == "read_text" and not node.args) or (
            node.func.attr == "open" and as_text
        )

    for path in FILES:
        vague = [n.lineno for n in ast.walk(ast.parse(path.read_text())) if is_vague(n)]
        assert not vague, f"{path}: give an encoding in lines {vague}"


def test_nothing_leaks_the_machine():
    written = [
        path
        for folder in ("benchmarks", "configs", "notebooks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".csv", ".ipynb")
        and ".ipynb_checkpoints" not in path.parts
    ]
    assert any(path.suffix == ".csv" for path in written)
    for path in [*FILES, *written, *ROOT.glob("*.md"), ROOT / "run.py"]:
        text = path.read_text()
        assert "/work/" not in text and "/tmp/" not in text, path
