"""Several hosts: what is refused before they meet, and two processes of four devices that train."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import errors
from errors import ConfigError, DistributedError
from eval.harness import narrowed
from eval.retrieval import Retrieval
from eval.subject import from_run
from training import cluster, distributed
from training import mesh as meshes
from training.distributed import Place
from training.roll_call import roll_call
from training.run import RunFolder

ROOT = Path(__file__).parents[1]
STEP = {  # of a Slurm job, as srun sets it
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ""),
        (STEP, ""),
        ({"SLURM_JOB_ID": "7"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, ""),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NODELIST"}, "STEP_NODELIST is not set"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "give --coordinator"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "x"}, ""),
    ],
)
def test_a_cluster_that_is_half_there_is_no_reason_to_train_alone(variables, said):
    # covers M6
    found = cluster.broken(variables)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    ("how", "place", "said"),
    [
        ("off", Place("a:1", 0, 2), "leave one of them out"),
        ("auto", Place("a:1", 0), "give all three"),
        ("auto", Place(process=1, processes=2), "give all three"),
        ("on", Place("a:1", 2, 2), "must be below --processes=2"),
        ("on", Place("a", 0, 2), "is not HOST:PORT"),
    ],
)
def test_flags_that_name_a_place_must_name_it_whole(how, place, said):
    with pytest.raises(ConfigError, match=said):
        distributed.join(how, place, 1)


def test_one_process_alone_passes_through():
    distributed.join("off", Place(), 1)
    assert distributed.first() and distributed.gathered(3) == [3] and distributed.left(7) == 7
    assert distributed.decided(lambda: "x") == "x"
    distributed.agree("settings", {"a": 1})
    votes = distributed.Votes()
    assert votes.cast(False, True) == (False, True)
    assert meshes.share(meshes.build(meshes.MeshConfig()), 16) == (0, 1)


def test_what_differs_is_named_with_its_hosts(monkeypatch):
    # covers M3
    rows = [{"settings": {"seed": seed, "data": {"cache": str(seed)}}} for seed in (0, 0, 5)]
    monkeypatch.setattr(distributed, "gathered", lambda _: rows)
    with pytest.raises(DistributedError, match=r"settings.seed is 0 on host 0, 5 on host 2;") as e:
        distributed.agree("settings", rows[0])
    assert "cache" not in str(e.value) and "host 1" not in str(e.value)


def test_an_error_of_process_0_ends_them_all(monkeypatch):
    # covers M4 M5
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.jax, "process_index", lambda: 1)
    said = {"error": "LockedError", "message": "runs/x is locked"}
    monkeypatch.setattr(distributed, "gathered", lambda _: [said, {}])
    with pytest.raises(errors.LockedError, match="runs/x is locked"):
        distributed.decided(lambda: 1 / 0)
    monkeypatch.setattr(distributed, "gathered", lambda _: [{"value": 4}, {}])
    assert distributed.decided(lambda: 1 / 0) == 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_roll_call_returns_when_all_are_there():
    port, late = free_port(), []
    ways = [
        (i, threading.Thread(target=roll_call, args=("127.0.0.1", port, i, 3, 20)))
        for i in (2, 0, 1)
    ]
    for _, thread in ways:
        thread.start()
    for number, thread in ways:
        thread.join(20)
        late += [number] * thread.is_alive()
    assert not late


def test_who_is_missing_is_said_on_both_sides():
    # covers M2
    port, said = free_port(), {}

    def call(number: int, processes: int = 4) -> None:
        try:
            roll_call("127.0.0.1", port, number, processes, 3)
        except DistributedError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in (0, 2)]
    threads += [threading.Thread(target=call, args=(1, 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert "process 1, 3 of 4 did not come" in said[0] == said[2]
    assert "wrong: process 0 has --processes=4" in said[1]
    call(3)
    assert "was not reached" in said[3]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    documents = [" ".join(rng.choice(words, 40)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    return folder


def train(text: Path, workdir: Path, *more: tuple[str, ...]) -> list[tuple[int, str]]:
    """(exit code, what was said) of as many processes of 8 devices together as there are tuples of
    flags in `more`."""
    settings = {
        "data.source": "text",
        "data.path": text / "text.txt",
        "data.separator": "\\n\\n",
        "data.cache": text / "cache",
        "model.width": 16,
        "model.depth": 1,
        "train.batch": 8,
        "train.length": 16,
        "train.steps": 6,
        "checkpoint.every": 2,
        "log.every": 1,
        "eval.batch": 8,
        "eval.tasks": "bits_per_byte",
        "eval.splits": "valid",
    }
    own = [f"--config.{key}={value}" for key, value in settings.items()]
    inherited = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // len(more)}")
    port, started = free_port(), []
    for i, flags in enumerate(more):
        place = [f"--coordinator=127.0.0.1:{port}", f"--process_id={i}", f"--processes={len(more)}"]
        command = [sys.executable, "train.py", *own, f"--workdir={workdir}", *flags]
        command += place if len(more) > 1 else []
        variables = {**os.environ, "XLA_FLAGS": inherited, "PYTHONHASHSEED": str(i)}
        started.append(
            subprocess.Popen(
                *(command,),
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        return [(p.wait(280), p.stdout.read()) for p in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
def test_two_hosts_stop_alike_and_one_goes_on_to_the_same_numbers(text, tmp_path):
    """SIGTERM comes to the second host alone; then one process takes the run over."""
    # covers M5 M7 M8 P1 K12
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert train(text, whole, ())[0][0] == 0
    (code, said), (second, its) = train(text, other, (), ("--config.debug.fault=sigterm@2",))
    assert (code, second) == (75, 75), said + its
    run = RunFolder(other)
    stopped = run.status()["step"]
    assert "stopped by another host" in said and "stopped by SIGTERM" in its
    assert stopped in (3, 4) and (other / "checkpoints" / str(stopped)).is_dir()
    before = sorted(p.name for p in other.iterdir())
    assert before == sorted(p.name for p in whole.iterdir() if p.name != "eval")
    code, said = train(text, other, ())[0]
    assert code == 0, said
    events = [event["event"] for event in run.events()]
    assert "elastic" in events
    rows = [RunFolder(folder).metrics() for folder in (whole, other)]
    assert [r["data_hash"] for r in rows[0]] == [r["data_hash"] for r in rows[1]]
    np.testing.assert_allclose(*([r["loss"] for r in row] for row in rows), rtol=1e-5)


@pytest.mark.slow
def test_hosts_that_disagree_end_before_they_compile(text, tmp_path):
    # covers M3
    found = train(text, tmp_path / "run", (), ("--config.optimizer.learning_rate=0.1",))
    for code, said in found:
        assert code == 76 and "optimizer.learning_rate is" in said and "on host 1" in said
    assert not (tmp_path / "run").exists()


MIXED = (
    "--config.objective=mixture",
    "--config.contrastive.positives=halves",
    "--config.contrastive.mining.every=2",
    "--config.contrastive.mining.pool=20",
    "--config.eval.tasks=('retrieval','sample')",
    "--config.eval.sample=3",
)


@pytest.mark.slow
def test_a_host_that_dies_ends_the_others_and_the_run_goes_on(text, tmp_path):
    """A mixture that mines negatives; at its end both judge it, as one process does."""
    # covers M1
    folder = tmp_path / "run"
    found = train(text, folder, MIXED, (*MIXED, "--config.debug.fault=kill@3"))
    (code, said), (killed, _) = found
    assert killed == -signal.SIGKILL
    # By a collective that fails at once, or by JAX after the heartbeats that did not come.
    gone = (76, "another host is gone"), (-signal.SIGABRT, "another task died")
    assert any(code == number and words in said for number, words in gone), said
    found = train(text, folder, MIXED, MIXED)
    assert [code for code, _ in found] == [0, 0], found
    run = RunFolder(folder)
    assert run.status()["state"] == "finished" and run.read_eval(6, "sample")["scores"]
    subject, _, step = from_run(folder)
    subject = narrowed(subject, Retrieval)
    for score in Retrieval(splits=("valid",))(subject):
        (value,) = (
            s["value"]
            for s in run.read_eval(step, "retrieval")["scores"]
            if s["name"] == score.name
        )
        same = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)
        assert score.value == same, score.name


@pytest.mark.slow
def test_a_run_that_hangs_ends_with_the_stacks_of_its_threads(text, tmp_path):
    # covers P10 M9
    folder = tmp_path / "run"
    ((code, said),) = train(
        *(text, folder), ("--config.debug.fault=hang@3", "--config.train.patience=3")
    )
    assert code == 71 and "no step for" in said and "at_step" in said
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 71)
    assert "at_step" in (folder / "error.log").read_text()
    assert not (folder / "LOCK").exists()
    assert train(text, folder, ())[0][0] == 0
