"""The tables of docs/formats.md beside what is written: every key is there, and no other."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_stores import distinct, made_store

from data.open_stores import open_data
from data.settings import DataConfig
from data.splits import SPLITS
from eval import harness
from eval.task import EvalContext, Score, TaskEntry
from eval.tasks import masked
from training import accounting
from training.checkpoint.manager import CheckpointManager
from training.checkpoint.settings import CheckpointConfig
from training.distributed.fault_injection import FaultInjector
from training.run import provenance
from training.run.open_folder import open_run
from training.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text("utf-8")


def table(heading: str) -> set[str]:
    """The names in the first column of the table below a heading."""
    (section,) = re.findall(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", TEXT, re.M | re.S)
    found = re.findall(r"^\| `([^`]+)` \|", section, re.M)
    assert len(found) == len(set(found)) > 0
    return set(found)


class Constant:
    """A task that needs no model."""

    version = 1

    def __call__(self, ctx):
        yield Score("valid/nats", 1.0, 8.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that trained nothing and wrote one of everything."""
    settings = Settings()
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, vocab_size=384),
        eval=dataclasses.replace(settings.eval, limit=0),
    )
    bill = accounting.cost_record(accounting.model_cost(settings), settings)
    record = provenance.make_run_record(settings={}, fingerprints={}, cost=bill, mesh={}, flags={})
    data = SimpleNamespace(fingerprint="f", select=lambda as_pairs: data)
    ctx = EvalContext(None, None, settings, settings.get_objective(), data)
    state = jax.device_put({"step": jnp.ones((), jnp.int32), "trainable": {"w": jnp.ones(2)}})
    with open_run(tmp_path_factory.mktemp("formats") / "run", record) as run:
        run.record_start(0)
        run.write_metrics(1, {})
        with CheckpointManager(
            run, CheckpointConfig(), FaultInjector("", attempt=1)
        ) as checkpoints:
            meta = {"data_hash": "r", "skipped_batches": 0, "rollbacks": 0}
            checkpoints.save(1, state, meta, wait=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(harness.TASKS, "constant", TaskEntry("", "unused"))
            run.write_eval(1, "constant", harness._run_task("constant", Constant(), ctx, 1))
        (run.path / "error.log").touch()
        listed = {name.name for name in run.path.iterdir()}
        run.record_finish(1)
    return run.path, listed


def last(path: Path) -> dict:
    text = path.read_text()
    return json.loads(text.splitlines()[-1] if path.suffix == ".jsonl" else text)


def test_a_run_folder_is_as_described(run):
    folder, listed = run
    assert {name.split("/")[0] for name in table("Run folder")} == listed
    assert table("run.json") == set(last(folder / "run.json"))
    assert table("cost") == set(last(folder / "run.json")["cost"])
    assert table("metrics.jsonl") == set(last(folder / "metrics.jsonl"))
    assert table("status.json") == set(last(folder / "status.json"))
    assert table("eval/STEP/TASK.json") == set(last(folder / "eval" / "1" / "constant.json"))
    assert table("events.jsonl") == set(last(folder / "events.jsonl")) - {"step"}
    assert table("Checkpoint manifest") == set(last(folder / "checkpoints" / "1" / "MANIFEST.json"))


def test_a_token_store_is_as_described(tmp_path):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text(f"text of {split}")
    named = {"path": "train", "valid_path": "valid", "test_path": "test"}
    paths = {key: f"{tmp_path}/{split}.txt" for key, split in named.items()}
    folder = open_data(DataConfig(source="text", cache=str(tmp_path / "cache"), **paths)).folder
    assert {path.name for path in folder.iterdir()} == {*SPLITS, "tokenizer.json", "shared.json"}
    assert table("Token store") == {path.name for path in (folder / "train").iterdir()}
    assert table("index.json") == set(last(folder / "train" / "index.json"))
    assert table("mask-LENGTH.json") == set(masked.MaskIndex._fields)


def test_numpy_reads_a_store(tmp_path):
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict = {}
    exec(compile(source, "docs/formats.md", "exec"), names)
    documents = distinct([3, 1, 7])
    made_store(tmp_path / "store", documents)
    for number, ids in enumerate(documents):
        np.testing.assert_array_equal(names["document"](tmp_path / "store", number), ids)


def test_the_table_of_tasks_has_their_versions():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d+) \|", page, re.M)
    versions = {name: int(n) for names, n in rows for name in re.findall(r"`(\w+)`", names)}
    assert versions == {name: task().version for name, task in harness.TASKS.items()}
