"""Locks a run folder for one owner; a dead owner is detected by its process or by its heartbeat.

LOCK names host, boot, process and its start time, so that a dead owner on this machine is detected
immediately, even if another process has the same number now. An owner on another machine (or in
another container) is recognized by its heartbeat alone: the modification time of LOCK, compared
with the clock of the same file system.
"""

import atexit
import contextlib
import datetime
import fcntl
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from errors import CheckpointError, DiskError, LockedError
from settings.json_types import JsonObject
from storage.disk_errors import disk_errors
from training.run.atomic_io import read_json
from training.run.run_paths import safe_join
from training.run.strict_json import encode_json

HEARTBEAT_SECONDS = 10.0  # seconds between heartbeats
STALE_SECONDS = 180.0  # seconds without a heartbeat after which an owner elsewhere is dead
EMPTY_LOCK_SECONDS = 10.0  # seconds that an owner may need to write into a new LOCK


class RunLock:
    """A lock file with an owner and a heartbeat; `acquire`, `check` and `release` it."""

    def __init__(
        self,
        path: Path,
        *,
        stale_seconds: float = STALE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ):
        self.path = path
        self.previous_owner = ""  # the dead owner whose lock was taken over, with the reason
        self._stale_seconds, self._heartbeat_seconds = stale_seconds, heartbeat_seconds
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self.is_lost = False  # whether another process has taken it over
        self._owner_pid = 0

    def acquire(self) -> None:
        """Takes the lock, also from a dead owner, and starts the heartbeat.

        Raises:
            LockedError: if another live process owns it.
        """
        with disk_errors(self.path):
            while not self._create():
                owner = self._read()
                if owner is None:  # the owner released it in the meantime
                    safe_join(self.path.parent, self.path.name)
                    continue
                reason = self._dead_reason(owner)
                if not reason:
                    raise LockedError(
                        f"{self.path.parent} is {describe_owner(owner)}; wait for it, or use "
                        "another --workdir"
                    )
                self._take_over(owner, reason)
        self._owner_pid = os.getpid()
        atexit.register(self.release)
        threading.Thread(target=self._heartbeat, name="lock heartbeat", daemon=True).start()

    def check(self) -> None:
        """Checks that this process still owns the lock.

        Raises:
            DiskError: if the folder was moved or removed.
            LockedError: if another process has taken it over.
        """
        folder = self.path.parent
        if self._is_folder_gone():
            self.is_lost = True  # so that nothing makes the folder again
            raise DiskError(
                f"{folder} was moved or removed during the run; put it back, or give its new path "
                "as --workdir, to resume from its last checkpoint"
            )
        if self.is_lost:
            owner = self._read()
            if owner is None:
                raise LockedError(
                    f"{self.path} was removed during the run, so that another process could train "
                    "in this folder; run the same command again to resume"
                )
            raise LockedError(
                f"{folder} is {describe_owner(owner)}: this process sent no heartbeat for too "
                "long; use another --workdir"
            )

    def release(self) -> None:
        """Deletes the lock if this process owns it; a forked child keeps the lock of its parent."""
        self._stop.set()
        atexit.unregister(self.release)
        if self._owner_pid == os.getpid() and self._is_ours():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._owner_pid = 0

    def _create(self) -> bool:
        content = owner_record(self._token)
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, encode_json(content).encode())
            os.fsync(file)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def _take_over(self, owner: JsonObject, reason: str) -> None:
        """Deletes the dead owner's file, one process at a time and only if it is still the same."""
        with contextlib.suppress(FileNotFoundError):
            file = os.open(self.path, os.O_RDWR)
            try:
                with contextlib.suppress(OSError):  # some file systems have no flock
                    fcntl.flock(file, fcntl.LOCK_EX)
                is_same = os.path.samestat(os.fstat(file), os.stat(self.path))
                if is_same and self._read() == owner:
                    self.path.unlink()
                    self.previous_owner = f"{describe_owner(owner)} ({reason})"
            finally:
                os.close(file)

    def _dead_reason(self, owner: JsonObject) -> str:
        """Explains why the owner cannot be alive; "" if it may be alive."""
        return dead_reason(owner, self._heartbeat_age(), self._stale_seconds)

    def _heartbeat_age(self) -> float:
        """Returns the seconds since the last heartbeat, by the clock of the file system."""
        probe = self.path.with_name(f"{self.path.name}.{self._token}")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink()

    def _is_folder_gone(self) -> bool:
        try:
            return not self.path.parent.is_dir()
        except OSError:  # a network file system may be away briefly
            return False

    def _read(self) -> JsonObject | None:
        return _read_lock(self.path)

    def _is_ours(self) -> bool:
        try:
            return (self._read() or {}).get("token") == self._token
        except (OSError, DiskError):
            return False

    def _heartbeat(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self._heartbeat_seconds):
            with contextlib.suppress(
                OSError, DiskError
            ):  # a network file system may be away briefly
                content = self._read()
                if (content or {}).get("token") == self._token:
                    os.utime(self.path)
                    last = time.monotonic()
                elif content != {} and not self._stop.is_set():
                    self.is_lost = True
                    return
            if time.monotonic() - last > self._stale_seconds and not self._stop.is_set():
                self.is_lost = True  # after so long, another process may have taken it over
                return


def process_start_time(pid: int) -> str | None:
    """Returns when `pid` started, in ticks since boot; None if it is dead, "" if unavailable."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]


def machine_id() -> dict[str, str]:
    """Returns values that identify this machine, or this container on it."""
    return {
        "host": socket.gethostname(),
        "boot": _read_line("/proc/sys/kernel/random/boot_id"),
        "namespace": _read_link("/proc/self/ns/pid"),
    }


def _read_lock(path: Path) -> JsonObject | None:
    try:
        return read_json(path, 2**16)
    except CheckpointError:
        return {}


def owner_record(token: str) -> JsonObject:
    """Returns what a lock says of this process as its owner; `token` identifies the lock."""
    pid = os.getpid()
    start = process_start_time(pid)
    return {**machine_id(), "pid": pid, "start": start, "token": token, "since": _utc_now()}


def dead_reason(owner: JsonObject, age: float, stale_seconds: float) -> str:
    """Explains why the owner of a lock cannot be alive; "" if it may be alive.

    Args:
        owner: the content of the lock.
        age: seconds since its last heartbeat.
        stale_seconds: seconds without a heartbeat after which an owner elsewhere is dead.
    """
    if not {"host", "pid"} <= owner.keys():
        return "its LOCK is unreadable" if age > EMPTY_LOCK_SECONDS else ""
    if all(owner.get(key) == value for key, value in machine_id().items()):
        start = process_start_time(owner["pid"])
        if start is None:
            return "that process has ended"
        return "" if start == owner.get("start") else "another process has that number now"
    return f"no heartbeat for {age:.0f} s" if age > stale_seconds else ""


def describe_owner(owner: JsonObject) -> str:
    """Returns a lock's owner in words that follow the name of the folder and "is"."""
    if not {"host", "pid"} <= owner.keys():
        return "being locked by another process"
    return f"locked by {owner['host']}:{owner['pid']} since {owner.get('since', 'an unknown time')}"


def _read_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
