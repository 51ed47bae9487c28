"""What is made of a configuration, where no other test looks."""

from configs import demo
from fewshotseg.data import cases


def test_test_cases_are_spread_over_the_sorted_ids():
    ids = tuple(f"{kind}/{i}" for kind in ("benign", "malignant", "normal") for i in range(4))
    assert cases.spread(ids, 3) == ("benign/0", "malignant/0", "normal/0")
    assert cases.spread(ids, 5) == (
        "benign/0", "benign/2", "malignant/0", "malignant/3", "normal/1"
    )  # fmt: skip
    assert cases.spread(ids, 12) == cases.spread(ids, 99) == ids


def test_a_split_has_at_most_so_many_test_cases():
    config = demo.get_config("runlocal")
    source = cases.create_source(config.data)
    every = cases.create_split(_without_limit(config), source)
    few = cases.create_split(config, source)
    assert len(few.test) == config.data.num_test == 4 < len(every.test)
    assert few.test == cases.spread(every.test, 4) != every.test[:4]
    assert few.train == every.train and few.validation == every.validation


def _without_limit(config):
    config = config.copy_and_resolve_references()
    config.data.num_test = 0
    return config
