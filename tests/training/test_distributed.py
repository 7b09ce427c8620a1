"""Several hosts: what is refused before they meet, and two processes of four devices that train."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import WORDS, saved_leaves, text_flags

import errors
from errors import ConfigError, DistributedError
from eval.harness import TASKS, narrow_to_objective
from eval.load_run import load_run
from eval.tasks.retrieval import Retrieval
from training import mesh as meshes
from training.distributed import cluster_env, multihost
from training.distributed.multihost import ProcessInfo
from training.distributed.peer_monitor import PeerMonitor
from training.distributed.rendezvous import rendezvous
from training.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
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
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "give --coordinator_address"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "x"}, ""),
    ],
)
def test_a_cluster_that_is_half_there_is_no_reason_to_train_alone(variables, said):
    # covers M6
    found = cluster_env.incomplete_env_error(variables)
    assert said in found and bool(said) == bool(found)


def _slurm(nodes: str = "node[1-2]", beside: str = "1(x2)", **more: str) -> dict[str, str]:
    return {**STEP, "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": beside, **more}


def _mpi(uri: str, local: str = "1") -> dict[str, str]:
    rank = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}
    beside = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": local}
    return {"OMPI_MCA_orte_hnp_uri": uri, **rank, **beside}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, ProcessInfo()),
        ({"SLURM_JOB_ID": "7"}, ProcessInfo()),
        (_slurm(), ProcessInfo("node1:61447", 0, 2)),
        (_slurm("gpu[007,012-15]", SLURM_PROCID="1"), ProcessInfo("gpu007:61447", 1, 2)),
        (_slurm("a7,b[1-3]", SLURM_JOB_ID="4097"), ProcessInfo("a7:61441", 0, 2)),
        (_slurm("r[1-2]-ib,x"), ProcessInfo("r1-ib:61447", 0, 2)),
        # Only several tasks of one node share its devices, and only if Slurm has not cut them.
        (_slurm(beside="1(x2),1"), ProcessInfo("node1:61447", 0, 2)),
        (_slurm(beside="2(x1)", SLURM_LOCALID="1"), ProcessInfo("node1:61447", 0, 2, (1,))),
        (_slurm(beside="1,11", SLURM_LOCALID="4"), ProcessInfo("node1:61447", 0, 2, (4,))),
        (_slurm(beside="2", SLURM_GPUS_PER_TASK="4"), ProcessInfo("node1:61447", 0, 2)),
        (
            _mpi("1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"),
            ProcessInfo("10.96.0.1:62624", 3, 4),
        ),
        (_mpi("4096.0;tcp6://[fe80::b9b:1,::2]:43370"), ProcessInfo("[fe80::b9b:1]:61441", 3, 4)),
        (_mpi("4096.0;tcp://10.96.0.1:9", "2"), ProcessInfo("10.96.0.1:61441", 3, 4, (1,))),
    ],
)
def test_a_process_of_a_whole_host_has_all_its_devices(variables, place):
    """JAX's own detection gives it one. Node lists as in Slurm's man pages of srun and scontrol."""
    assert cluster_env.detect_process(variables) == place


def test_variables_that_are_no_numbers_are_named():
    with pytest.raises(ConfigError, match="SLURM_PROCID is 'x', not a number"):
        cluster_env.detect_process(_slurm(SLURM_PROCID="x"))


@pytest.mark.parametrize(
    ("how", "place", "said"),
    [
        ("off", ProcessInfo("a:1", 0, 2), "omit one of them"),
        ("auto", ProcessInfo("a:1", 0), "give all three"),
        ("auto", ProcessInfo(process_id=1, num_processes=2), "give all three"),
        ("on", ProcessInfo("a:1", 2, 2), "must be below --num_processes=2"),
        ("on", ProcessInfo("a", 0, 2), "is not HOST:PORT"),
        ("on", ProcessInfo("a:99999", 0, 2), "is not HOST:PORT .* between 1 and 65535"),
        ("on", ProcessInfo("a:\N{SUPERSCRIPT TWO}", 0, 2), "is not HOST:PORT"),
    ],
)
def test_flags_that_name_a_place_must_name_it_whole(how, place, said):
    with pytest.raises(ConfigError, match=said):
        multihost.initialize(how, place, 1)


def test_one_process_alone_passes_through():
    multihost.initialize("off", ProcessInfo(), 1)
    assert (
        multihost.is_main_process()
        and multihost.all_gather_object(3) == [3]
        and multihost.exit_if_failed(7) == 7
    )
    assert multihost.run_on_main_process(lambda: "x") == "x"
    multihost.check_hosts_agree("settings", {"a": 1})
    votes = multihost.AnyAcrossHosts()
    assert votes.reduce(False, True) == (False, True)
    assert meshes.process_shard(meshes.make_mesh(meshes.MeshConfig()), 16) == (0, 1)


def test_what_differs_is_named_with_its_hosts(monkeypatch):
    # covers M3
    rows = [{"settings": {"seed": seed, "data": {"cache": str(seed)}}} for seed in (0, 0, 5)]
    monkeypatch.setattr(multihost, "all_gather_object", lambda _: rows)
    with pytest.raises(DistributedError, match=r"settings.seed is 0 on host 0, 5 on host 2;") as e:
        multihost.check_hosts_agree("settings", rows[0])
    assert "cache" not in str(e.value) and "host 1" not in str(e.value)


def test_an_error_of_process_0_ends_them_all(monkeypatch):
    # covers M4 M5
    monkeypatch.setattr(multihost.jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost.jax, "process_index", lambda: 1)
    said = {"error": "LockedError", "message": "runs/x is locked"}
    monkeypatch.setattr(multihost, "all_gather_object", lambda _: [said, {}])
    with pytest.raises(errors.LockedError, match="runs/x is locked"):
        multihost.run_on_main_process(lambda: 1 / 0)
    monkeypatch.setattr(multihost, "all_gather_object", lambda _: [{"value": 4}, {}])
    assert multihost.run_on_main_process(lambda: 1 / 0) == 4


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError, RuntimeError])
def test_a_collective_that_fails_says_that_a_host_is_gone(monkeypatch, kind):
    # covers M1: jax 0.10 raises ValueError from eager collectives
    monkeypatch.setattr(multihost.jax, "process_count", lambda: 2)
    text = "UNKNOWN: Gloo AllGather failed: Connection closed by peer"
    with pytest.raises(DistributedError, match="another host has died"), multihost.peer_errors():
        raise kind(text)
    with pytest.raises(kind, match="shapes"), multihost.peer_errors():
        raise kind("shapes do not fit")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_roll_call_returns_when_all_are_there():
    port, late = free_port(), []
    ways = [
        (i, threading.Thread(target=rendezvous, args=("127.0.0.1", port, i, 3, 20)))
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
            rendezvous("127.0.0.1", port, number, processes, 3)
        except DistributedError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in (0, 2)]
    threads += [threading.Thread(target=call, args=(1, 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert "process 1, 3 of 4 did not connect" in said[0] == said[2]
    assert "wrong: process 0 has --num_processes=4" in said[1]
    call(3)
    assert "was not reached" in said[3]


class FakeRun:
    """A run folder that collects the errors with which it was aborted."""

    def __init__(self):
        self.errors = []

    def record_abort(self, error):
        self.errors.append(str(error))


@pytest.mark.parametrize(
    ("number", "last", "wait", "reason"),
    [
        (0, b"", 0, "process 1 has died"),
        (2, b"", 0, "process 0 has died"),
        (2, b"garbage\n", 0, "process 0 has died"),
        (
            0,
            {"reason": "process 1 ended: DiskError: full", "wait_seconds": 0.2},
            0.2,
            "ended: DiskError",
        ),
        (0, {}, 0, ""),
    ],
)
def test_a_lost_connection_ends_this_process_too(monkeypatch, number, last, wait, reason):
    """Process 0 of three loses process 1, or process 2 loses process 0, without a normal end."""
    # covers M1
    codes, fake_run = [], FakeRun()
    monkeypatch.setattr(multihost, "is_main_process", lambda: number == 0)
    monkeypatch.setattr(multihost, "hard_exit", lambda code: codes.append((code, time.monotonic())))
    pairs = {i: socket.socketpair() for i in ((1, 2) if number == 0 else (0,))}
    monitor = PeerMonitor(fake_run)
    monitor._connections = {i: pair[0] for i, pair in pairs.items()}
    thread = threading.Thread(target=monitor._listen, daemon=True)
    thread.start()
    sender, began = min(pairs), time.monotonic()
    line = last if isinstance(last, bytes) else json.dumps(last).encode() + b"\n"
    pairs[sender][1].sendall(line)
    pairs[sender][1].close()
    if not reason:
        pairs[2][1].sendall(line)
        thread.join(10)
        assert not thread.is_alive() and not codes and not fake_run.errors
        return
    if number == 0:  # the others are told before anything else
        pairs[2][1].settimeout(10)
        message = json.loads(pairs[2][1].recv(1000))
        assert reason in message["reason"] and message["wait_seconds"] == wait
    while not codes and time.monotonic() - began < 10:
        time.sleep(0.01)
    assert codes[0][0] == 76 and reason in fake_run.errors[0]
    assert "the run resumes from its last checkpoint" in fake_run.errors[0]
    assert codes[0][1] - began >= wait
    for number in pairs.keys() - {sender}:
        pairs[number][1].sendall(b"{}\n")
    thread.join(10)
    assert len(codes) == 1 and not thread.is_alive()


def test_who_ends_by_its_own_error_in_time_is_not_ended_by_another(monkeypatch):
    codes = []
    monkeypatch.setattr(multihost, "is_main_process", lambda: False)
    monkeypatch.setattr(multihost, "hard_exit", codes.append)
    ours, theirs = socket.socketpair()
    monitor = PeerMonitor(FakeRun())
    monitor._connections = {0: ours}
    thread = threading.Thread(target=monitor._listen, daemon=True)
    thread.start()
    theirs.sendall(b'{"reason": "process 0 ended: NonFiniteError: nan", "wait_seconds": 30}\n')
    with pytest.raises(errors.NonFiniteError), contextlib.ExitStack() as stack:
        stack.push(monitor.__exit__)
        raise errors.NonFiniteError("nan")
    theirs.settimeout(10)
    assert "NonFiniteError: nan" in json.loads(theirs.recv(1000))["reason"]
    theirs.close()
    thread.join(10)
    assert not codes


def free_job() -> int:
    """A job's number whose port is free."""
    for job in range(os.getpid(), os.getpid() + 1000):
        with contextlib.suppress(OSError):
            place = cluster_env.detect_process(_slurm(SLURM_JOB_ID=str(job)))
            socket.create_server(
                ("127.0.0.1", int(place.coordinator_address.rpartition(":")[2]))
            ).close()
            return job
    raise OSError("no port is free")


def train(
    text: Path, workdir: Path, *more: tuple[str, ...], slurm: bool = False
) -> list[tuple[int, str]]:
    """(exit code, what was said) of as many processes of 8 devices together as there are tuples of
    flags in `more`; they know of each other by flags, or by the variables of a Slurm job."""
    own = text_flags(
        text, workdir, "--config.eval.tasks=bits_per_byte", "--config.eval.splits=valid"
    )
    inherited = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // len(more)}")
    port, job, started = free_port(), free_job(), []
    for i, flags in enumerate(more):
        place = [
            f"--coordinator_address=127.0.0.1:{port}",
            f"--process_id={i}",
            f"--num_processes={len(more)}",
        ]
        command = [sys.executable, "train.py", *own, *flags]
        command += place if len(more) > 1 and not slurm else []
        variables = {**os.environ, "XLA_FLAGS": inherited, "PYTHONHASHSEED": str(i)}
        if slurm:
            variables |= _slurm("127.0.0.1", SLURM_JOB_ID=str(job), SLURM_PROCID=str(i))
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
def test_two_hosts_stop_alike_and_one_goes_on_to_the_same_numbers(finished_run, text, tmp_path):
    """SIGTERM comes to the second host alone; then one process takes the run over."""
    # covers M5 M7 M8 P1 K12
    whole, other = finished_run, tmp_path / "other"
    (code, said), (second, its) = train(text, other, (), ("--config.debug.inject_fault=sigterm@2",))
    assert (code, second) == (75, 75), said + its
    run = RunFolder(other)
    stopped = run.read_status()["step"]
    assert "stopped by another host" in said and "stopped by SIGTERM" in its
    assert stopped in (3, 4) and (other / "checkpoints" / str(stopped)).is_dir()
    before = sorted(p.name for p in other.iterdir())
    assert before == sorted(p.name for p in whole.iterdir() if p.name != "eval")
    code, said = train(text, other, ())[0]
    assert code == 0, said
    events = [event["event"] for event in run.read_events()]
    assert "devices_changed" in events
    rows = [RunFolder(folder).read_metrics() for folder in (whole, other)]
    assert [r["data_hash"] for r in rows[0]] == [r["data_hash"] for r in rows[1]]
    np.testing.assert_allclose(*([r["loss"] for r in row] for row in rows), rtol=1e-5)


@pytest.mark.slow
def test_hosts_that_disagree_end_before_they_compile(text, tmp_path):
    # covers M3
    found = train(text, tmp_path / "run", (), ("--config.optimizer.learning_rate=0.1",), slurm=True)
    for code, said in found:
        assert code == 76 and "optimizer.learning_rate is" in said and "on host 1" in said
    assert not (tmp_path / "run").exists()


MIXED = (
    "--config.objective=mixture",
    "--config.contrastive.positives=split_text",
    "--config.contrastive.mining.refresh_every=2",
    "--config.contrastive.mining.pool_size=20",
    "--config.eval.tasks=('retrieval','sample')",
    "--config.eval.sample_tokens=3",
)


@pytest.mark.slow
def test_a_host_that_dies_ends_the_others_and_the_run_goes_on(text, tmp_path):
    """A mixture that mines negatives; at its end both judge it, as one process does."""
    # covers M1
    folder = tmp_path / "run"
    found = train(text, folder, MIXED, (*MIXED, "--config.debug.inject_fault=kill@3"))
    (code, said), (killed, _) = found
    assert killed == -signal.SIGKILL
    # By its connection or by a collective that fails, whichever is first.
    assert code == 76 and ("process 1 has died" in said or "another host has died" in said), said
    assert RunFolder(folder).read_status()["code"] == 76 and not (folder / "LOCK").exists()
    found = train(text, folder, MIXED, MIXED)
    assert [code for code, _ in found] == [0, 0], found
    run = RunFolder(folder)
    assert run.read_status()["state"] == "finished" and run.read_eval(6, "sample")["scores"]
    subject, _, step = load_run(folder)
    subject = narrow_to_objective(subject, TASKS["retrieval"].objective)
    for score in Retrieval(splits=("valid",))(subject):
        (value,) = (
            s["value"]
            for s in run.read_eval(step, "retrieval")["scores"]
            if s["name"] == score.name
        )
        same = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)
        assert score.value == same, score.name


def preference_flags(folder: Path, *more: str) -> tuple[str, ...]:
    """Flags of a run on preferences, which it writes: a reply in small letters is chosen."""
    lines = [
        {"prompt": f"{i} {WORDS[i % 9]}? ", "chosen": f"{word} so", "rejected": f"{word} SO"}
        for i, word in enumerate(WORDS * 10)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {
        "objective": "preference",
        "train.seq_len": 32,
        "data.source": "jsonl",
        "data.path": folder / "pairs.jsonl",
        "data.document_separator": "",
        "data.valid_share": 0.2,
        "data.test_share": 0.1,
        "data.max_shared": 1,
        "eval.tasks": "preference",
    }
    return (*(f"--config.{name}={value}" for name, value in settings.items()), *more)


@pytest.mark.slow
def test_hosts_share_the_reference_of_preferences(text, tmp_path):
    """Each reads its own part of the pairs; together they have the log-likelihoods of one host."""
    folders, flags = (tmp_path / "one", tmp_path / "two"), preference_flags(tmp_path)
    for folder, hosts in zip(folders, ([flags], [flags, flags]), strict=True):
        found = train(text, folder, *hosts)
        assert [code for code, _ in found] == [0] * len(hosts), found
    rows = [RunFolder(folder).read_metrics() for folder in folders]
    for key in ("data_hash", "loss", "margin"):
        one, two = ([row[key] for row in run] for run in rows)
        assert two == (one if key == "data_hash" else pytest.approx(one, rel=1e-4, abs=1e-5))
    assert rows[0][-1]["loss"] < rows[0][0]["loss"]
    banks = [saved_leaves(folder, 6, "banks.") for folder in folders]
    for name, values in banks[0].items():
        assert (values < 0).all()
        np.testing.assert_allclose(banks[1][name], values, rtol=1e-4)
    scores = [
        {s["name"]: s["value"] for s in RunFolder(folder).read_eval(6, "preference")["scores"]}
        for folder in folders
    ]
    assert {*scores[0]} == {*scores[1]} and "valid/preference_accuracy" in scores[0]
    for name, value in scores[0].items():
        same = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-4)
        assert scores[1][name] == same, name


@pytest.mark.slow
def test_a_run_that_hangs_ends_with_the_stacks_of_its_threads(text, tmp_path):
    # covers P10 M9
    folder = tmp_path / "run"
    ((code, said),) = train(
        *(text, folder), ("--config.debug.inject_fault=hang@3", "--config.train.hang_timeout=3")
    )
    assert code == 71 and "no step for" in said and "at_step" in said
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 71)
    assert "at_step" in (folder / "error.log").read_text()
    assert not (folder / "LOCK").exists()
    assert train(text, folder, ())[0][0] == 0
