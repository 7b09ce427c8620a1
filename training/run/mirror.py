"""Mirrors the scratch folder of a run to an object store, in the background and at the end.

The object store has the same files as a run folder, with two differences: logs are numbered parts
(`metrics.parts/GENERATION-OFFSET`), because objects cannot grow, and LOCK is a folder. Objects that
others seal come first, after run.json: of a checkpoint, all files before MANIFEST.json; of the run,
status.json last. A checkpoint is deleted in the opposite order. What a kill leaves is therefore a
whole older state, and objects that no reader takes for a checkpoint.

The scratch folder of the last owner is the newest state, so that a run that was killed continues in
it. Any other scratch folder is replaced by what the store has.
"""

import contextlib
import logging
import shutil
import threading
import time
from pathlib import Path

from errors import DiskError, IsoflopError
from settings.types import is_digits
from storage.remote import RemoteFolder
from storage.scratch import (
    LOCK_NAME,
    PARTS_SUFFIX,
    download_tree,
    newest_parts,
)
from training.run.remote_lock import RemoteLock

LOGGER = logging.getLogger("isoflop")
LOGS = ("metrics", "events")
MANIFEST = "MANIFEST.json"
RECORD, STATUS = "run.json", "status.json"
TOKEN_FILE = ".owner"  # the token of the lock under which this scratch folder was written
SYNC_SECONDS = 30.0  # seconds between two uploads, unless a checkpoint asks for one
MAX_PARTS = 1000  # parts of a log after which it is written anew as one part
RETRY_SECONDS = (1.0, 5.0, 20.0)  # before each further attempt at the last upload
MAX_ATTEMPTS = 3  # to upload what changes meanwhile


class RunMirror:
    """The copy of a run folder in an object store, whose lock this process holds."""

    def __init__(self, path: Path, url: str):
        self.path = path
        self.failure = ""  # why the last upload failed
        self.remote = RemoteFolder(url)
        self.lock = RemoteLock(self.remote)
        self._logs = {name: _LogParts(self.remote, path / f"{name}.jsonl") for name in LOGS}
        self._manifests: dict[str, bytes] = {}  # of the checkpoints in the store
        self._versions: dict[str, tuple[int, int]] = {}  # of the other files, as uploaded
        self._mutex = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Takes the lock, brings the scratch folder up to date, and starts the uploads.

        Raises:
            LockedError: if another live process owns the run.
            DiskError: if the store cannot be used.
        """
        self.lock.acquire()
        try:
            self._update_scratch()
        except BaseException:
            self.lock.release()
            raise
        self._thread = threading.Thread(target=self._upload_often, name="run mirror", daemon=True)
        self._thread.start()

    def request_upload(self) -> None:
        """Asks for an upload now, in the background; a checkpoint has been sealed."""
        self._wake.set()

    def close(self, timeout: float | None = None) -> None:
        """Uploads what is new and releases the lock; `failure` says if that was impossible.

        Args:
            timeout: seconds to wait at most, for a process that is about to be ended.
        """
        if self._thread is None:
            return
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)
        self._thread = None
        self.lock.release()

    def upload(self) -> None:
        """Uploads what has changed since the last call.

        Raises:
            LockedError: if another process has taken the run over.
            DiskError: if the store cannot be used, or files change while they are read.
        """
        with self._mutex:
            for _ in range(MAX_ATTEMPTS):
                # A checkpoint may be deleted here while it is uploaded; the next attempt omits it.
                with contextlib.suppress(FileNotFoundError):
                    self._upload()
                    return
            raise DiskError(f"{self.path} changes too fast to be uploaded; save less often")

    def _upload(self) -> None:
        self.lock.check_now()
        paths = {path.relative_to(self.path).as_posix(): path for path in self._files()}
        if RECORD not in paths:  # it says which run the other files belong to
            return
        status = (self.path / STATUS).read_bytes() if STATUS in paths else None
        checkpoints = self._local_checkpoints()
        for name in sorted(paths, key=lambda name: (name != RECORD, name)):
            if name != STATUS:
                self._upload_file(name, paths[name])
        for log in self._logs.values():
            log.upload()
        for step, manifest in checkpoints.items():
            if self._manifests.get(step) != manifest:
                self._delete_checkpoint(step)
                self._upload_checkpoint(step, manifest)
        for step in [step for step in self._manifests if step not in checkpoints]:
            self._delete_checkpoint(step)
        if status is not None:
            self.remote.write(STATUS, status)

    def _upload_file(self, name: str, path: Path) -> None:
        version = (path.stat().st_size, path.stat().st_mtime_ns)
        if self._versions.get(name) != version:
            self.remote.upload(path, name)
            self._versions[name] = version

    def _files(self) -> list[Path]:
        """Returns the files besides logs and checkpoints; those that a kill left are omitted."""
        left_out = {f"{name}.jsonl" for name in LOGS} | {f"{name}{PARTS_SUFFIX}" for name in LOGS}
        left_out |= {LOCK_NAME, "checkpoints"}
        files = [self.path / "checkpoints" / "OWNER.json"]
        for top in self.path.iterdir():
            if top.name not in left_out:
                files += top.rglob("*") if top.is_dir() else [top]
        return [
            path
            for path in files
            if path.is_file() and path.name[0] != "." and not path.name.startswith(f"{LOCK_NAME}.")
        ]

    def _local_checkpoints(self) -> dict[str, bytes]:
        """Returns the manifests of the sealed checkpoints by step, newest last."""
        manifests = (self.path / "checkpoints").glob(f"*/{MANIFEST}")
        steps = {path.parent.name: path for path in manifests if is_digits(path.parent.name)}
        return {step: steps[step].read_bytes() for step in sorted(steps, key=int)}

    def _upload_checkpoint(self, step: str, manifest: bytes) -> None:
        folder = self.path / "checkpoints" / step
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path != folder / MANIFEST:
                self.remote.upload(path, path.relative_to(self.path).as_posix())
        self.remote.write(f"checkpoints/{step}/{MANIFEST}", manifest)
        self._manifests[step] = manifest

    def _delete_checkpoint(self, step: str) -> None:
        seal = f"checkpoints/{step}/{MANIFEST}"
        self._manifests.pop(step, None)
        self.remote.delete(sorted(self.remote.list(f"checkpoints/{step}"), key=lambda n: n != seal))

    def _update_scratch(self) -> None:
        """Keeps the scratch folder of the last owner, and replaces any other by the store's."""
        names = [name for name in self.remote.list() if not name.startswith(f"{LOCK_NAME}/")]
        steps = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
        sealed = {step for step in steps if f"checkpoints/{step}/{MANIFEST}" in names}
        token = self.path / TOKEN_FILE
        is_newest = bool(self.lock.previous_token) and (
            token.is_file() and token.read_text() == self.lock.previous_token
        )
        if not is_newest:
            shutil.rmtree(self.path, ignore_errors=True)
            wanted_files = [name for name in names if self._is_readable(name, sealed)]
            download_tree(self.remote, self.path, wanted_files)
        self.path.mkdir(parents=True, exist_ok=True)
        token.write_text(self.lock.token)
        for step in sealed:
            seal = self.path / "checkpoints" / step / MANIFEST
            content = self.remote.read(f"checkpoints/{step}/{MANIFEST}")
            if content is not None and seal.is_file() and seal.read_bytes() == content:
                self._manifests[step] = content
        for step in (step for step in steps if is_digits(step) and step not in self._manifests):
            self._delete_checkpoint(step)
        for name, log in self._logs.items():
            log.find_parts([part for part in names if part.startswith(f"{name}{PARTS_SUFFIX}/")])

    @staticmethod
    def _is_readable(name: str, sealed_steps: set[str]) -> bool:
        """Returns whether an object is part of the run: all but those of unsealed checkpoints."""
        top, _, below = name.partition("/")
        step = below.partition("/")[0]
        return top != "checkpoints" or "/" not in below or step in sealed_steps

    def _upload_often(self) -> None:
        """Uploads at intervals and when asked; at the end it tries a few times more."""
        while not self._stop.is_set():
            self._wake.wait(SYNC_SECONDS)
            self._wake.clear()
            if not self._stop.is_set():
                self._try_upload()
        for delay in (0.0, *RETRY_SECONDS):
            time.sleep(delay)
            self._try_upload()
            if not self.failure or self.lock.is_lost:
                return

    def _try_upload(self) -> None:
        """Uploads; a failure is logged once, and the run goes on in its scratch folder."""
        previous, self.failure = self.failure, ""
        try:
            self.upload()
        except (IsoflopError, OSError) as error:
            self.failure = str(error)
        if self.failure and not previous:
            LOGGER.warning("not uploaded: %s; the run goes on in %s", self.failure, self.path)


class _LogParts:
    """The parts of one log in the store."""

    def __init__(self, remote: RemoteFolder, path: Path):
        self._remote, self._path = remote, path
        self._folder = path.stem + PARTS_SUFFIX
        self._generation, self._size, self._inode = 0, 0, -1
        self._names: list[str] = []

    def find_parts(self, names: list[str]) -> None:
        """Continues the parts with these names if they are the beginning of the local log."""
        self._names = names
        parts = newest_parts(name.rpartition("/")[2] for name in names)
        self._generation = int(parts[0].partition("-")[0]) if parts else 0
        data = b"".join(self._remote.read(f"{self._folder}/{part}") or b"" for part in parts)
        if self._path.is_file() and self._path.read_bytes()[: len(data)] == data:
            self._size, self._inode = len(data), self._path.stat().st_ino

    def upload(self) -> None:
        """Uploads the complete lines that are new; a log that was replaced is written anew."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            status = self._path.stat()
            is_same = status.st_ino == self._inode and status.st_size >= self._size
            file.seek(self._size if is_same else 0)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        if is_same and not data:
            return
        if is_same and len(self._names) < MAX_PARTS:
            self._write_part(data)
            return
        if is_same:
            data = self._path.read_bytes()[: self._size + len(data)]
        outdated, self._names = self._names, []
        self._generation, self._size, self._inode = self._generation + 1, 0, status.st_ino
        self._write_part(data)
        self._remote.delete([*outdated, self._path.name])

    def _write_part(self, data: bytes) -> None:
        name = f"{self._folder}/{max(self._generation, 1):04d}-{self._size:012d}"
        self._generation = max(self._generation, 1)
        self._remote.write(name, data)
        self._names.append(name)
        self._size += len(data)
