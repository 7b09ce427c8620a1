"""The lock of a run folder: one owner, told apart from a dead one by process and by heartbeat.

LOCK names host, boot, process and its start time, so that a dead owner on this machine is known at
once, even when its number is in use again. An owner on another machine (or in another container) is
judged by the heartbeat alone: the time of LOCK, compared with the clock of the same file system.
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
from typing import Any

from errors import CheckpointError, DiskError, LockedError
from training.files import disk, encode, inside, read_json

BEAT = 10.0  # seconds between heartbeats
STALE = 180.0  # an owner elsewhere that is silent for so long is dead
UNWRITTEN = 10.0  # a LOCK without content is about to get one for so long


class Lock:
    """`acquire` or LockedError; `check` raises when another process has taken it over meanwhile."""

    def __init__(self, path: Path, *, stale: float = STALE, beat: float = BEAT):
        self.path = path
        self.took_over = ""  # whose lock was taken over, and why
        self._stale, self._beat = stale, beat
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self.lost = False  # another process has taken it over
        self._owner_pid = 0

    def acquire(self) -> None:
        with disk(self.path):
            while not self._create():
                owner = self._read()
                if owner is None:  # released between the two looks
                    inside(self.path.parent, self.path.name)
                    continue
                reason = self._dead(owner)
                if not reason:
                    raise LockedError(
                        f"{self.path.parent} is {_name(owner)}; wait for it, or use another "
                        "--workdir"
                    )
                self._take_over(owner, reason)
        self._owner_pid = os.getpid()
        atexit.register(self.release)
        threading.Thread(target=self._heartbeat, name="lock heartbeat", daemon=True).start()

    def check(self) -> None:
        if self.lost:
            owner = self._read()
            now = _name(owner) if owner else "not locked any more"
            raise LockedError(f"{self.path.parent} is {now}: this process was silent for too long")

    def release(self) -> None:
        """Give the lock back if it is still ours; a forked child leaves its parent's alone."""
        self._stop.set()
        atexit.unregister(self.release)
        if self._owner_pid == os.getpid() and self._ours():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._owner_pid = 0

    def _create(self) -> bool:
        content = {**_identity(), "token": self._token, "since": _now()}
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, encode(content).encode())
            os.fsync(file)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def _take_over(self, owner: dict[str, Any], reason: str) -> None:
        """Remove the dead owner's file, one process at a time and only if it is still that one."""
        with contextlib.suppress(FileNotFoundError):
            file = os.open(self.path, os.O_RDWR)
            try:
                with contextlib.suppress(OSError):  # some file systems have no flock
                    fcntl.flock(file, fcntl.LOCK_EX)
                same = os.path.samestat(os.fstat(file), os.stat(self.path))
                if same and self._read() == owner:
                    self.path.unlink()
                    self.took_over = f"{_name(owner)} ({reason})"
            finally:
                os.close(file)

    def _dead(self, owner: dict[str, Any]) -> str:
        """Why the owner cannot be alive; "" when it may be."""
        age = self._age()
        if not {"host", "pid"} <= owner.keys():
            return "its LOCK is unreadable" if age > UNWRITTEN else ""
        if all(owner.get(key) == value for key, value in machine().items()):
            start = process_start(owner["pid"])
            if start is None:
                return "that process is gone"
            return "" if start == owner.get("start") else "another process has that number now"
        return f"no heartbeat for {age:.0f} s" if age > self._stale else ""

    def _age(self) -> float:
        """Seconds since the last heartbeat, by the clock of the file system."""
        probe = self.path.with_name(f"{self.path.name}.{self._token}")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink()

    def _read(self) -> dict[str, Any] | None:
        return _content(self.path)

    def _ours(self) -> bool:
        try:
            return (self._read() or {}).get("token") == self._token
        except (OSError, DiskError):
            return False

    def _heartbeat(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError, DiskError):  # a file system away for a moment
                content = self._read()
                if (content or {}).get("token") == self._token:
                    os.utime(self.path)
                    last = time.monotonic()
                elif content != {} and not self._stop.is_set():
                    self.lost = True
                    return
            if time.monotonic() - last > self._stale and not self._stop.is_set():
                self.lost = True  # away for so long that another may have taken it over
                return


def process_start(pid: int) -> str | None:
    """When `pid` started, in ticks since boot ("" where that is not told); None if it is dead."""
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


def machine() -> dict[str, str]:
    """What tells this machine, or container, from others."""
    return {
        "host": socket.gethostname(),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
    }


def _content(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path, 2**16)
    except CheckpointError:
        return {}


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {**machine(), "pid": pid, "start": process_start(pid)}


def _name(owner: dict[str, Any]) -> str:
    if not {"host", "pid"} <= owner.keys():
        return "being locked by another process"
    return f"locked by {owner['host']}:{owner['pid']} since {owner.get('since', 'an unknown time')}"


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
