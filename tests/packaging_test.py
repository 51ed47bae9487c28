"""What is installed: every room, the configurations, and versions that .ci/run has seen work."""

import configparser
import pathlib
import re

import pytest
import setuptools

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text):
    return [line.partition("#")[0].strip() for line in text.strip().splitlines()]


def release(version):
    return tuple(int(part) for part in version.split("."))


def normal(name):
    return re.sub("[-_.]+", "-", name.partition("[")[0]).lower()


def test_every_room_is_installed(setup):
    rooms = setuptools.find_packages(str(ROOT), include=["fewshotseg*"])
    assert sorted(lines(setup["options"]["packages"])) == sorted([*rooms, "fewshotseg.configs"])
    assert lines(setup["options"]["package_dir"]) == ["fewshotseg.configs = configs"]


def test_the_oldest_versions_are_the_lower_bounds(setup):
    oldest = {}
    for line in lines((ROOT / "requirements" / "oldest.txt").read_text()):
        if line:
            name, _, version = line.partition("==")
            oldest[normal(name)] = version
    bounds = {}
    for line in lines(setup["options"]["install_requires"]):
        name, _, version = line.partition(">=")
        bounds[normal(name)] = version
    assert bounds.keys() | {"jaxlib"} == oldest.keys()
    for name, bound in bounds.items():
        parts = release(bound)
        assert release(oldest[name])[: len(parts)] == parts, name


def test_the_lower_bounds_fit_colab(setup):
    """Colab's image of August 2026: a higher bound would reinstall JAX and break its GPU and TPU."""
    colab = {
        "jax": "0.7.2", "flax": "0.11.2", "optax": "0.2.8", "numpy": "2.1.3", "scipy": "1.16.3",
        "matplotlib": "3.10.0", "pillow": "11.3.0",
    }  # fmt: skip
    bounds = dict(line.split(">=") for line in lines(setup["options"]["install_requires"]))
    for name, version in colab.items():
        assert release(bounds[name]) <= release(version), name


def test_one_version_number(setup):
    version = setup["metadata"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
