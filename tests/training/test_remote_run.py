"""Runs in an object store: the lock, the mirror of a run folder, and copies for readers."""

import json
import os
import threading
from pathlib import Path

import board_runs
import pytest

from data.build_store import ensure_built
from data.settings import DataConfig
from errors import DiskError, LockedError
from leaderboard import main as leaderboard
from storage import scratch
from storage.remote import RemoteFolder, is_url, normalize_url, store_errors
from training.preflight.report import print_scores
from training.run import mirror
from training.run.folder import RunFolder
from training.run.lock import owner_record
from training.run.open_folder import open_run
from training.run.remote_lock import RemoteLock

RECORD = {
    **{"format": 2, "run_id": "r", "created": "c", "settings": {}, "fingerprints": {}},
    "flags": {},
}


@pytest.fixture
def url(tmp_path, monkeypatch):
    """The URL of a folder that no other test uses, in a store in memory."""
    monkeypatch.setattr(scratch, "ROOT", str(tmp_path / "cache"))
    return f"memory://bucket{tmp_path}/run"


def write_checkpoint(run, step, content=b"x"):
    """Writes a folder that looks like a sealed checkpoint."""
    folder = run.path / "checkpoints" / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "leaf").write_bytes(content)
    (folder / "MANIFEST.json").write_text(json.dumps({"step": step, "content": content.decode()}))


def names(url):
    return sorted(name for name in RemoteFolder(url).list() if not name.startswith("LOCK/"))


def train(url, *, rows, checkpoints=()):
    """Writes a run as training does, without training; returns its folder after the end."""
    with open_run(scratch.local_path(url), RECORD) as run:
        run.record_start(0)
        for step in rows:
            run.write_metrics(step, {"loss": step / 2})
        for step in checkpoints:
            write_checkpoint(run, step)
        run.record_finish(max(rows))
    return run


def test_urls_survive_a_path(tmp_path):
    from pathlib import Path

    assert normalize_url(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert normalize_url("gs://bucket/a/") == "gs://bucket/a"
    assert not is_url(tmp_path) and not is_url("s3:/") and not is_url("runs/s3:/x")


def test_one_of_many_processes_gets_the_lock_of_a_folder(url):
    results, barrier = [], threading.Barrier(8)

    def acquire():
        lock = RemoteLock(RemoteFolder(url), heartbeat_seconds=60)
        barrier.wait()
        try:
            lock.acquire()
            results.append(lock)
        except LockedError as error:
            results.append(str(error))

    threads = [threading.Thread(target=acquire) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owners = [lock for lock in results if isinstance(lock, RemoteLock)]
    assert len(owners) == 1 and len(results) == 8
    assert all("locked by" in text for text in results if isinstance(text, str))
    owners[0].release()
    second = RemoteLock(RemoteFolder(url))
    second.acquire()
    assert not second.previous_owner and second.previous_token == owners[0].token
    second.release()


def test_a_dead_owner_is_detected_by_its_process_or_its_heartbeat(url):
    folder = RemoteFolder(url)
    elsewhere = owner_record("a") | {"host": "elsewhere", "released": False}
    folder.write("LOCK/000007", json.dumps(elsewhere).encode())
    with pytest.raises(LockedError, match="elsewhere"):
        RemoteLock(folder).acquire()
    slow = RemoteLock(folder, stale_seconds=-1, heartbeat_seconds=0.01)
    slow.acquire()
    assert "no heartbeat" in slow.previous_owner
    folder.write("LOCK/000008", json.dumps(owner_record("b") | {"pid": 2**31 - 5}).encode())
    fast = RemoteLock(folder)
    fast.acquire()
    assert "has ended" in fast.previous_owner
    while not slow.is_lost:  # its heartbeat finds a higher number
        threading.Event().wait(0.01)
    with pytest.raises(LockedError, match="taken over"):
        slow.check()
    slow.release()
    assert names(url) == [] and list(folder.list()) == ["LOCK/000009"]
    fast.release()


def test_a_run_is_mirrored_and_goes_on_where_its_scratch_folder_is_gone(url):
    path = train(url, rows=(1, 2), checkpoints=(1, 2)).path
    assert {"run.json", "status.json", "checkpoints/2/MANIFEST.json"} <= set(names(url))
    assert json.loads(RemoteFolder(url).read("status.json"))["state"] == "finished"
    before = RunFolder(path).read_metrics()
    path.rename(path.with_name("elsewhere"))
    with open_run(path, RECORD) as run:
        assert run.is_resumed and run.attempt == 2 and run.find_damage() == []
        assert run.read_metrics() == before
        assert (path / "checkpoints/1/state/leaf").read_bytes() == b"x"
        run.record_start(2)
        run.write_metrics(3, {"loss": 1.0})
    copy = scratch.local_copy(url)
    assert copy != path and [row["step"] for row in RunFolder(copy).read_metrics()] == [1, 2, 3]
    assert RunFolder(copy).read_events() == RunFolder(path).read_events()


def test_a_scratch_folder_that_is_not_the_newest_is_replaced(url):
    path = train(url, rows=(1,), checkpoints=(1,)).path
    old = path.rename(path.with_name("first machine"))
    train(url, rows=(2, 3), checkpoints=(3,))
    path.rename(path.with_name("second machine"))
    old.rename(path)
    with open_run(path, RECORD) as run:
        assert max(row["step"] for row in run.read_metrics()) == 3


def test_a_killed_run_keeps_what_its_scratch_folder_has_more_than_the_store(url, monkeypatch):
    path = train(url, rows=(1,), checkpoints=(1,)).path
    with open_run(path, RECORD) as run:
        write_checkpoint(run, 2)  # it is sealed here, and the process dies before the upload
        monkeypatch.setattr(run.mirror, "_try_upload", lambda: None)
    with open_run(path, RECORD) as run:
        assert (path / "checkpoints/2/MANIFEST.json").is_file()
    assert "checkpoints/2/MANIFEST.json" in names(url)


@pytest.mark.parametrize("n_uploads", range(7))
def test_the_store_has_a_whole_state_whenever_uploads_stop(url, monkeypatch, n_uploads):
    path = train(url, rows=(1,), checkpoints=(1,)).path
    writes, is_dead = [], [False]
    with open_run(path, RECORD) as run:
        run.record_start(1)
        write_checkpoint(run, 2, b"new")
        (path / "checkpoints/1/MANIFEST.json").unlink()
        for method in ("write", "upload", "delete", "create"):
            real = getattr(RemoteFolder, method)

            def until_killed(self, *args, real=real):
                writes.append(args)
                if len(writes) > n_uploads or is_dead[0]:
                    is_dead[0] = True
                    raise DiskError("killed")
                return real(self, *args)

            monkeypatch.setattr(RemoteFolder, method, until_killed)
        monkeypatch.setattr(mirror, "RETRY_SECONDS", ())
        monkeypatch.setattr(run, "_is_owner_lost", lambda: True)
        with pytest.raises(DiskError):
            run.mirror.upload()
        run.mirror._try_upload = lambda: None
    monkeypatch.undo()
    remote = RemoteFolder(url)
    steps = {name.split("/")[1] for name in remote.list() if name.endswith("MANIFEST.json")}
    assert steps  # one checkpoint at least is whole at any moment
    for step in steps:
        sealed = json.loads(remote.read(f"checkpoints/{step}/MANIFEST.json"))["content"]
        assert remote.read(f"checkpoints/{step}/state/leaf").decode() == sealed


def test_run_json_is_in_the_store_before_any_checkpoint(url, monkeypatch):
    order, upload = [], RemoteFolder.upload
    with open_run(scratch.local_path(url), RECORD) as run:
        monkeypatch.setattr(
            RemoteFolder, "upload", lambda self, *a: (order.append(a[1]), upload(self, *a))
        )
        write_checkpoint(run, 1)
        (run.path / "checkpoints/OWNER.json").write_text("{}")
        run.mirror.upload()
        assert not order  # without run.json, another machine would take them for another run's
        run.record_start(0)
    assert order[0] == "run.json" and "checkpoints/1/state/leaf" in order


def test_a_log_is_numbered_parts_and_is_written_anew_when_it_changes(url, monkeypatch):
    monkeypatch.setattr(mirror, "MAX_PARTS", 3)
    with open_run(scratch.local_path(url), RECORD) as run:
        run.record_start(0)
        for step in range(1, 6):
            run.write_metrics(step, {"loss": 0.0})
            run.mirror.upload()
        parts = [name for name in names(url) if name.startswith("metrics.parts/")]
        assert len(parts) == 2 and all(p.startswith("metrics.parts/0002-") for p in parts)
    copy = scratch.local_copy(url)
    assert (copy / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    RemoteFolder(url).delete(parts[:1])
    assert (scratch.local_copy(url) / "metrics.jsonl").read_bytes() == b""


def test_a_store_that_fails_stops_no_run_and_the_end_says_so(url, monkeypatch, caplog):
    monkeypatch.setattr(mirror, "RETRY_SECONDS", ())
    with pytest.raises(DiskError, match="refused.*run the same command again"):  # noqa: SIM117
        with open_run(scratch.local_path(url), RECORD) as run:
            run.record_start(0)

            write = RemoteFolder.write

            def refuse(self, name, data):
                if name.startswith("LOCK/"):
                    return write(self, name, data)
                with store_errors(url):
                    raise PermissionError("Forbidden")

            monkeypatch.setattr(RemoteFolder, "write", refuse)
            run.write_metrics(1, {"loss": 0.0})
            run.record_finish(1)
    monkeypatch.undo()
    monkeypatch.setattr(scratch, "ROOT", str(run.path.parents[2]))
    open_run(run.path, RECORD).close()
    assert json.loads(RemoteFolder(url).read("status.json"))["state"] == "finished"


@pytest.mark.parametrize(
    "error, word",
    [
        (PermissionError("An error occurred (ExpiredToken)"), "expired"),
        (FileNotFoundError("The specified bucket does not exist"), "does not exist"),
        (
            type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"),
            "credential",
        ),
        (ImportError("Install s3fs"), r"isoflop\[remote\]"),
        (TimeoutError("a\nb"), "network"),
    ],
)
def test_errors_of_a_store_are_one_line_with_a_way_out(error, word):
    with pytest.raises(DiskError, match=word) as caught, store_errors("s3://bucket/x"):
        raise error
    assert str(caught.value).startswith("s3://bucket/x") and "\n" not in str(caught.value)


def test_a_local_file_that_is_deleted_while_it_is_sent_is_no_error_of_the_store(
    url, tmp_path, monkeypatch
):
    file, remote = tmp_path / "shard", RemoteFolder(url)
    file.write_bytes(b"1")

    def put_file(path, target):
        file.unlink()
        raise FileNotFoundError(path)

    monkeypatch.setattr(remote._fs, "put_file", put_file)
    with pytest.raises(FileNotFoundError):
        remote.upload(file, "shard")


def test_objects_whose_names_leave_the_folder_are_refused(url):
    folder = RemoteFolder(url)
    folder._fs.pipe_file(f"{folder._root}/a/../../evil", b"x")
    with pytest.raises(DiskError, match="no valid name|does not exist"):
        scratch.local_copy(url)


def test_sources_and_token_stores_are_read_from_a_store(url):
    folder = RemoteFolder(url)
    for i in range(30):
        folder.write(f"text/{i:02d}.txt", f"document {i} has its words\n".encode() * 20)
    folder.write("text/notes.md", b"left out")
    config = {"source": "text", "document_separator": "", "max_shared": 1.0}
    cfg = DataConfig(path=f"{url}/text/*.txt", cache=f"{url}/cache", **config)
    built = ensure_built(cfg)
    assert (built / "train" / "index.json").is_file()
    index = (built / "train" / "index.json").read_bytes()
    built.rename(built.with_name("elsewhere"))
    stored = names(f"{url}/cache")
    assert ensure_built(cfg) == built and (built / "train/index.json").read_bytes() == index
    assert names(f"{url}/cache") == stored  # it was downloaded, not built


def test_a_board_reads_runs_of_a_store_and_goes_to_one(url, tmp_path, capsys):
    board_runs.run(tmp_path / "runs", "a", 0, 1.0)
    folder = RemoteFolder(url)
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            folder.upload(path, path.relative_to(tmp_path / "runs").as_posix())
    assert leaderboard([url, f"--out={url}/board"]) == 0, capsys.readouterr().err
    assert folder.read("board/leaderboard.html")


def test_folders_that_nobody_used_for_a_week_are_deleted(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scratch, "MAX_FOLDERS", 2)
    paths = [scratch.local_path(f"{url}{i}", kind) for kind in ("scratch", "copies") for i in "012"]
    for path in paths:
        path.mkdir()
        (path / "metrics.jsonl").write_text("{}")
    week = 8 * 86400

    def age(path):
        for part in (path / "metrics.jsonl", path, path.parent / scratch.URL_FILE, path.parent):
            os.utime(part, (part.stat().st_mtime - week,) * 2)

    for path in (paths[0], paths[1], paths[3]):
        age(path)
    os.utime(paths[1] / "metrics.jsonl")  # A live run writes its log.
    scratch.local_path(f"{url}3")
    assert [path.is_dir() for path in paths] == [False, True, True, True, True, True]
    print_scores({}, paths[1])
    assert f"Run folder: {url}1/ (scratch folder: {paths[1]}/)" in capsys.readouterr().out
    print_scores({}, Path("/"))
    assert capsys.readouterr().out == "Run folder: /\n"
