"""Fixtures shared by the tests."""

import os
import pathlib

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Compiled programs use up the memory maps that Linux allows a process."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real images in the layouts of the official downloads; not part of the repository."""
    beside_checkout = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("FEWSHOTSEG_TEST_DATA", beside_checkout))
    if not folder.is_dir():
        pytest.skip("no real images here: set FEWSHOTSEG_TEST_DATA to a folder that holds them")
    return folder
