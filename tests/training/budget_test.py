"""The steps that fit into so many minutes, with nothing built or timed."""

import json

import pytest

from configs import default
from fewshotseg import errors
from fewshotseg.training import budget


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """`plan(minutes) -> configuration` afterwards, on a machine on which a quarter of the steps fits."""
    monkeypatch.setattr(budget.build, "build", lambda config: config.train.num_steps)
    monkeypatch.setattr(budget.train, "time_stages", lambda experiment: [])
    monkeypatch.setattr(budget.timing, "describe", lambda timings: "timed")
    monkeypatch.setattr(budget.timing, "fitting_share", lambda timings, seconds: 0.25)

    def run(minutes):
        config = default.get_config()
        config.train.num_steps, config.pretrain.num_steps = 40, 8
        config.optim.warmup_steps = 20
        built = budget.plan(config, tmp_path, minutes)
        assert built == config.train.num_steps  # what was built is what the configuration says
        return config

    return run


def test_a_budget_shortens_both_stages_and_the_warm_up(plan, tmp_path):
    config = plan(5)
    assert (config.train.num_steps, config.pretrain.num_steps) == (10, 2)
    assert config.optim.warmup_steps == 9
    stored = json.loads((tmp_path / "budget.json").read_text())
    assert stored == {"minutes": 5, "pretrain": 2, "train": 10}


def test_the_same_command_goes_on_with_the_steps_it_had(plan, monkeypatch):
    first = plan(5)
    monkeypatch.setattr(budget.timing, "fitting_share", lambda timings, seconds: 0.5)
    assert plan(5).to_dict() == first.to_dict()  # the warm-up too


def test_what_no_longer_goes_together_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(budget.build, "build", lambda config: None)
    monkeypatch.setattr(budget.train, "time_stages", lambda experiment: [])
    monkeypatch.setattr(budget.timing, "describe", lambda timings: "timed")
    monkeypatch.setattr(budget.timing, "fitting_share", lambda timings, seconds: 0.25)
    config = default.get_config()
    config.methods, config.outer.start = ("end2end",), config.train.num_steps // 2
    with pytest.raises(errors.InputError, match="outer.start is .* never take a hypergradient"):
        budget.plan(config, tmp_path, 5)


def test_where_all_steps_fit_the_same_command_goes_on_too(plan, monkeypatch):
    monkeypatch.setattr(budget.timing, "fitting_share", lambda timings, seconds: 1.0)
    assert plan(60).train.num_steps == 40
    monkeypatch.setattr(budget.folder, "is_begun", lambda workdir: True)
    assert plan(60).train.num_steps == 40


def test_without_a_budget_nothing_changes(plan, tmp_path, capsys):
    assert plan(0).train.num_steps == 40
    assert "timed" in capsys.readouterr().out  # but is announced
    assert not (tmp_path / "budget.json").exists()


def test_a_budget_is_for_a_new_run(plan, monkeypatch):
    monkeypatch.setattr(budget.folder, "is_begun", lambda workdir: True)
    with pytest.raises(errors.InputError, match="--minutes is for a new run"):
        plan(5)
