"""What the documents tell a reader to do, done."""

import re
import sys
import types
from pathlib import Path

import pytest
import test_contracts
import test_objectives
import tiny

from arch import config as arch_config

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def running_mean(monkeypatch):
    """The mixer of docs/mixer.md, made as its reader makes it: a file and an entry in a table."""
    text = (DOCS / "mixer.md").read_text("utf-8")
    module = types.ModuleType("arch.running_mean")
    monkeypatch.setitem(sys.modules, "arch.running_mean", module)
    (source,) = re.findall(r"```python\n(\"\"\"Running.*?)```", text, re.DOTALL)
    exec(compile(source, "docs/mixer.md", "exec"), module.__dict__)
    monkeypatch.setitem(arch_config.MIXERS, "running_mean", module.RunningMean)
    yield "running_mean"
    tiny.model.cache_clear()


@pytest.mark.slow
def test_the_mixer_of_the_recipe_keeps_every_contract(running_mean):
    changes = tiny.BOTH
    test_contracts.test_views(running_mean, changes)
    test_contracts.test_packed_documents_are_as_if_alone_and_padding_changes_nothing(
        running_mean, changes
    )
    test_contracts.test_prefill_and_steps_are_the_parallel_form(running_mean, changes)
    test_contracts.test_precision(running_mean, changes)
    test_contracts.test_cost_counts_every_leaf_and_every_multiply_add(running_mean, changes)
    for length in (0, 1, 7):
        test_contracts.test_values_and_gradients_are_finite_and_every_parameter_gets_one(
            running_mean, changes, length
        )
    test_contracts.test_scanned_unrolled_and_rematerialised_are_one_function(running_mean, "mlp")
    test_contracts.test_every_mesh_computes_what_one_device_does(running_mean, "mlp")


def test_the_mixer_of_the_recipe_learns(running_mean):
    test_objectives.test_the_loss_falls_below_the_unigram("masked_lm", running_mean)
