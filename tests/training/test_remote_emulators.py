"""Runs in emulators of object stores on this machine: S3 (moto) and Google Cloud Storage.

The emulator of Google Cloud Storage ignores the condition that an object is absent, so that only
S3's and the store in memory (test_remote_run.py) show that one of several processes gets a lock.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs

import compare
import generate
from errors import DiskError, LockedError
from hub import __main__ as hub_command
from storage.remote import RemoteFolder
from training.run.cli_errors import run_command
from training.run.remote_lock import RemoteLock

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(tmp_path, port, *command):
    """Starts an emulator and waits until it accepts connections."""
    with (tmp_path / "emulator.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process
        except OSError:
            assert process.poll() is None, (tmp_path / "emulator.log").read_text()
            time.sleep(0.1)
    raise AssertionError("the emulator does not start")


def require(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; uv sync installs it")


@pytest.fixture
def s3(tmp_path, monkeypatch):
    """An S3 emulator with the bucket `bucket`, in the variables that s3fs reads."""
    require("moto", "s3fs")
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    process = start(tmp_path, port, "moto.server", "-p", str(port))
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    RemoteFolder("s3://bucket")._fs.call_s3("create_bucket", Bucket="bucket")
    yield "s3://bucket"
    process.kill()
    process.wait()


@pytest.fixture
def gs(tmp_path, monkeypatch):
    """An emulator of Google Cloud Storage with the bucket `bucket`."""
    require("gcp_storage_emulator", "gcsfs")
    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = ("start", "--port", str(port), "--in-memory", "--default-bucket", "bucket")
    process = start(tmp_path, port, "gcp_storage_emulator", *options)
    yield "gs://bucket"
    process.kill()
    process.wait()


class Trainer:
    """Runs train.py in processes of one device, which share compiled programs."""

    def __init__(self, tmp_path):
        self.folder = tmp_path
        tiny_runs.write_text(tmp_path)
        self.variables = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}

    def start(self, workdir, *more):
        command = tiny_runs.text_flags(self.folder, workdir, *more)
        command += [f"--config.train.compile_cache={self.folder / 'programs'}"]
        return subprocess.Popen(
            [sys.executable, "train.py", *command],
            cwd=ROOT,
            env=self.variables,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir, *more):
        process = self.start(workdir, *more)
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors

    def kill_when(self, url, condition, *more):
        """Kills a run as soon as the names of the objects meet a condition."""
        process, remote = self.start(url, *more), RemoteFolder(url)
        while not condition(set(remote.list())) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode

    def forget_scratch(self):
        shutil.rmtree(self.folder / "home/.cache/isoflop/remote/scratch")


def sealed(step):
    return f"checkpoints/{step}/MANIFEST.json"


def is_half_uploaded(step):
    def condition(names):
        has_state = any(name.startswith(f"checkpoints/{step}/state/") for name in names)
        return has_state and sealed(step) not in names

    return condition


def test_a_run_on_s3_that_is_killed_five_times_ends_with_the_same_bits(s3, tmp_path):
    """Other machines go on twice: without the scratch folder, only the store has the state."""
    trainer, url = Trainer(tmp_path), f"{s3}/runs/killed"
    assert trainer.run(tmp_path / "whole")[0] == 0
    moments = [
        lambda names: any(name.startswith("LOCK/") for name in names),
        is_half_uploaded(2),
        lambda names: sealed(2) in names,
        lambda names: any(name.startswith("checkpoints/4/") for name in names),
        lambda names: sealed(6) in names,
    ]
    for number, moment in enumerate(moments):
        assert trainer.kill_when(url, moment) == -signal.SIGKILL, number
        if number in (1, 4):
            trainer.forget_scratch()
    code, errors = trainer.run(url)
    assert code == 0, errors
    trainer.forget_scratch()
    evaluate = [sys.executable, "-m", "eval", f"--run={url}", "--tasks=bits_per_byte"]
    subprocess.run(evaluate, cwd=ROOT, env=trainer.variables, check=True)
    (copy,) = (tmp_path / "home/.cache/isoflop/remote/copies").glob("*/killed")
    tiny_runs.assert_same_bits(tmp_path / "whole", copy, 6)
    rows = [tiny_runs.RunFolder(path).read_metrics() for path in (tmp_path / "whole", copy)]
    losses = [[row["loss"] for row in series if "loss" in row] for series in rows]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    names = RemoteFolder(url).list()
    assert {name.split("/")[1] for name in names if name.endswith("MANIFEST.json")} == {"4", "6"}
    board = [sys.executable, "leaderboard.py", f"{s3}/runs"]
    result = subprocess.run(board, cwd=ROOT, env=trainer.variables, capture_output=True, text=True)
    assert result.returncode == 0 and "killed" in result.stdout, result.stderr


STUDY = """
from protocol.study.study import Study
from training.settings import defaults
from settings.changes import with_changes

def get_config():
    c = defaults()
    for key, value in {settings!r}.items():
        section, name = key.rsplit(".", 1)
        node = c
        for part in section.split("."):
            node = getattr(node, part)
        setattr(node, name, value)
    c.log.console = "off"
    return c

def study():
    return Study(
        candidates={{"one": {{}}, "two": {{"model.attention.rope.theta": 500.0}}}},
        reference="one",
        comparisons=(("two", "one"),),
        match_by="steps",
        margin=0.01,
        seeds=(0, 1),
    )
"""


def test_every_command_reads_and_writes_urls(s3, tmp_path, capfd):
    tiny_runs.write_text(tmp_path)
    data = {
        "data.source": "text",
        "data.path": str(tmp_path / "text.txt"),
        "data.document_separator": "\\n\\n",
        "data.cache": str(tmp_path / "cache"),
    }
    url = f"{s3}/runs/first"
    assert tiny_runs.run(*tiny_runs.text_flags(tmp_path, url)) == 0
    assert f"Run folder: {url}/ (scratch folder: " in capfd.readouterr().out
    prompt = ["--prompt=the quick", "--max_new_tokens=4"]
    assert run_command(generate.run, [f"--run={url}", *prompt]) == 0
    assert run_command(hub_command.run, ["export", url, f"{s3}/export"]) == 0
    assert "model.safetensors" in RemoteFolder(f"{s3}/export").list()
    for source in (url, f"{s3}/export"):
        more = (f"--init_from={source}", "--config.eval.tasks=bits_per_byte")
        target = f"{s3}/runs/from_{source.rpartition('/')[2]}"
        assert tiny_runs.run(*tiny_runs.text_flags(tmp_path, target, *more)) == 0
        assert sealed(6) in RemoteFolder(target).list()
    (tmp_path / "study.py").write_text(STUDY.format(settings=tiny_runs.SETTINGS | data))
    argv = [f"--config={tmp_path / 'study.py'}", f"--workdir={s3}/study"]
    assert run_command(compare.run, argv) == 0
    names = set(RemoteFolder(f"{s3}/study").list())
    assert {"plan.json", "board/leaderboard.html"} <= names
    assert sum(name.endswith("/status.json") for name in names) == 4
    assert not any("Traceback" in text for text in capfd.readouterr())


def test_one_owner_gets_a_lock_on_s3(s3):
    first, second = (RemoteLock(RemoteFolder(f"{s3}/run")) for _ in range(2))
    assert RemoteFolder(f"{s3}/run").create("x", b"1")
    assert not RemoteFolder(f"{s3}/run").create("x", b"2")
    assert RemoteFolder(f"{s3}/run").read("x") == b"1"
    first.acquire()
    with pytest.raises(LockedError, match=f"{s3}/run is locked by"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_missing_bucket_and_missing_credentials_are_one_line(s3, tmp_path, monkeypatch):
    trainer = Trainer(tmp_path)
    code, errors = trainer.run("s3://nowhere/run")
    assert code == 74 and errors.splitlines()[-1].startswith("DiskError: s3://nowhere/run"), errors
    assert "does not exist" in errors and "Traceback" not in errors
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        trainer.variables.pop(name)
    trainer.variables["AWS_EC2_METADATA_DISABLED"] = "true"
    code, errors = trainer.run(f"{s3}/run")
    assert code == 74 and "credentials" in errors.splitlines()[-1], errors
    assert "Traceback" not in errors


def test_refused_access_is_one_line(s3):
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    from storage.remote import store_errors

    for code in ("AccessDenied", "ExpiredToken", "InvalidAccessKeyId"):
        answer = {"Error": {"Code": code, "Message": "The provided token is refused."}}
        with pytest.raises(DiskError, match="access is refused"), store_errors(s3):
            raise translate_boto_error(ClientError(answer, "ListObjectsV2"))


def test_a_run_on_google_cloud_storage_goes_on_on_another_machine(gs, tmp_path):
    trainer, url = Trainer(tmp_path), f"{gs}/runs/run"
    assert trainer.run(tmp_path / "whole")[0] == 0
    fault = "--config.debug.inject_fault=kill@5"
    assert trainer.kill_when(url, lambda names: sealed(4) in names, fault) == -signal.SIGKILL
    trainer.forget_scratch()
    code, errors = trainer.run(url)
    assert code == 0, errors
    (path,) = (tmp_path / "home/.cache/isoflop/remote/scratch").glob("*/run")
    tiny_runs.assert_same_bits(tmp_path / "whole", path, 6)
    assert RemoteFolder(url).read("status.json")
