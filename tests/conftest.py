"""Fixtures shared by the tests."""

import gc
import os
import pathlib

import jax
import pytest

# Compiling is most of what the tests do. XLA's optimisations make it four times that, and no test is about
# them: JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests with them. Set here for the processes that tests start, too.
OPTIMIZED = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "1"
jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
# XLA ends a process that is given a flag it does not know; these are known from the oldest JAX to 0.10.
FAST_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 8):
    FAST_COMPILE += " --xla_cpu_prefer_vector_width=128"  # as `cli` has it
if not OPTIMIZED and jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{FAST_COMPILE} {os.environ.get('XLA_FLAGS', '')}"
gc.set_threshold(50_000)  # as `cli.main` does


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Compiled programs use up the memory maps that Linux allows a process."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Of the processes that tests start: what one of them compiles, in any test, the others read."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real images in the layouts of the official downloads; not part of the repository."""
    beside_checkout = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("FEWSHOTSEG_TEST_DATA", beside_checkout))
    if not folder.is_dir():
        pytest.skip("no real images here: set FEWSHOTSEG_TEST_DATA to a folder that holds them")
    return folder
