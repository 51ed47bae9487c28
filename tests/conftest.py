"""Fixtures shared by the tests."""

import os
import pathlib

import jax
import pytest
import toy_runs
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Compiled programs use up the memory maps that Linux allows a process."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> pathlib.Path:
    """Folder of the compiled programs of this session."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def cached_programs(programs):
    """This process compiles as the toy runs do, and shares their programs."""
    settings = {**toy_runs.FAST_COMPILE, "jax_compilation_cache_dir": str(programs)}
    before = {name: jax.config.values[name] for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, programs):
    """A toy run that nothing disturbed: its folder, and what it printed. Not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = toy_runs.run(workdir, programs)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real images in the layouts of the official downloads; not part of the repository."""
    beside_checkout = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("FEWSHOTSEG_TEST_DATA", beside_checkout))
    if not folder.is_dir():
        pytest.skip("no real images here: set FEWSHOTSEG_TEST_DATA to a folder that holds them")
    return folder
