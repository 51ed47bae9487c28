"""What benchmarks/fewshot_volumes.py trains and tests on, and that its configurations are accepted."""

import fewshot_volumes as benchmark
import pytest

from fewshotseg.training import config_check


@pytest.fixture
def data_dir(tmp_path):
    names = {
        "msd_hippocampus": {"train": 20, "val": 20, "test": 20},
        "drive": {"train": 10, "test": 5},
    }
    for dataset, parts in names.items():
        for part, number in parts.items():
            path = tmp_path / "splits" / dataset / f"{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{part}_{i}\n" for i in range(number)))
    return tmp_path


@pytest.mark.parametrize("test_list", ["val", "test"])
@pytest.mark.parametrize("dataset", ["msd_hippocampus", "drive"])
def test_no_case_trains_and_tests_and_the_numbers_can_be_drawn(data_dir, dataset, test_list):
    found = benchmark.lists(dataset, str(data_dir), test_list)
    assert not set(found["pool"]) & set(found["test"])
    roles = {case.partition("_")[0] for case in found["test"]}
    wanted = {"test"} if test_list == "test" else {"val"} if "hippo" in dataset else {"train"}
    assert roles == wanted and "test" not in {c.partition("_")[0] for c in found["pool"]}
    config = benchmark.configure(
        dataset, 1, benchmark.METHODS, data_dir, data_dir / "lists.json", test_list
    )
    assert config.data.num_train + config.data.num_validation <= len(found["pool"])
    config_check.check_config(config)
