"""The warmup in steps or as a share of them, and what a resumed run may change of its batch."""

from fnmatch import fnmatchcase

import pytest

from configs.dense import get_config
from errors import ConfigError
from protocol.study import budget
from settings.changes import with_changes
from settings.run_json import RUN_FORMAT
from settings.tree import freeze
from training.optimizer import OptimizerConfig, lr_schedule
from training.run import resume_check
from training.runner import MAY_CHANGE_ON_RESUME
from training.settings import Settings


def test_a_warmup_below_one_is_a_share_of_the_steps():
    assert OptimizerConfig(warmup=0.1).warmup_steps(200) == 20
    assert OptimizerConfig(warmup=20).warmup_steps(200) == 20
    at = lr_schedule(OptimizerConfig(warmup=0.5, learning_rate=1.0, schedule="constant"), 8)
    assert [float(at(step)) for step in (0, 4, 7)] == pytest.approx([0.25, 1, 1])
    assert float(at(3)) < 1
    for steps in (0, 1, 2, 5):  # a short run never fails
        assert OptimizerConfig(warmup=0.99).warmup_steps(steps) == max(steps - 1, 0)
        lr_schedule(OptimizerConfig(warmup=0.99), steps)


def test_a_warmup_of_a_part_of_a_step_is_refused():
    with pytest.raises(ConfigError, match=r"warmup is 2\.5, must be a whole number of steps, or"):
        OptimizerConfig(warmup=2.5)
    with pytest.raises(ConfigError, match="largest: 9; a number below 1 is a share of the steps"):
        OptimizerConfig(warmup=10).warmup_steps(10)


def test_a_shipped_config_trains_for_any_number_of_steps():
    settings = freeze(Settings, get_config("tiny"))
    assert settings.optimizer.warmup_steps(settings.train.steps) == settings.train.steps // 50
    assert settings.optimizer.warmup_steps(2) == 0


def test_a_share_stays_a_share_where_steps_are_matched():
    settings = with_changes(Settings(), {"optimizer.warmup": 0.1, "model.vocab_size": 300})
    settings = with_changes(settings, {"train.steps": 100})
    costs = budget.compute_run_costs(settings)
    matched = budget._with_steps("a", settings, "tokens", costs.tokens / 2, 1.0, 0.01)
    assert (matched.train.steps, matched.optimizer.warmup) == (50, 0.1)
    counted = with_changes(settings, {"optimizer.warmup": 20})
    matched = budget._with_steps("a", counted, "tokens", costs.tokens / 2, 1.0, 0.01)
    assert (matched.train.steps, matched.optimizer.warmup) == (50, 10)


def test_another_batch_size_names_the_way(tmp_path):
    record = {"format": RUN_FORMAT, "run_id": "a", "created": "b"}
    old = record | {"settings": {"train": {"batch_size": 8, "grad_accum_steps": 1}}}
    new = record | {"settings": {"train": {"batch_size": 4, "grad_accum_steps": 1}}}
    with pytest.raises(ConfigError, match="keep train.batch_size=8 and set train.grad_accum_steps"):
        resume_check.check_resumable(tmp_path, old, new, MAY_CHANGE_ON_RESUME, False)
    new["settings"] = {"train": {"batch_size": 8, "grad_accum_steps": 2}}
    resume_check.check_resumable(tmp_path, old, new, MAY_CHANGE_ON_RESUME, False)
    assert any(fnmatchcase("train.grad_accum_steps", key) for key in MAY_CHANGE_ON_RESUME)
