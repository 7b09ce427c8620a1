"""Locks a folder of an object store by numbered objects, of which the highest is the owner's.

An object store cannot replace an object only if it is unchanged, but it creates one only if it is
absent. `LOCK/000001` is the first owner. Whoever finds the newest owner dead, or its lock released,
creates the next number; one process succeeds. The newest lock is never deleted, so that numbers
only grow. The owner writes its lock again as a heartbeat, and it has lost the folder when a higher
number exists.
"""

import contextlib
import json
import secrets
import threading
import time

from errors import DiskError, LockedError
from settings.json_types import JsonObject
from settings.types import is_digits
from storage.remote import RemoteFolder
from storage.scratch import LOCK_NAME
from training.run.lock import (
    HEARTBEAT_SECONDS,
    STALE_SECONDS,
    dead_reason,
    describe_owner,
    owner_record,
)
from training.run.strict_json import decode_json


class RemoteLock:
    """The lock of a remote folder; `acquire`, `check` and `release` it."""

    def __init__(
        self,
        remote: RemoteFolder,
        *,
        stale_seconds: float = STALE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ):
        self.previous_owner = ""  # the dead owner whose lock was taken over, with the reason
        self.previous_token = ""  # of the last owner, whether it is dead or has released the lock
        self.token = secrets.token_hex(8)
        self.is_lost = False  # whether another process has taken it over
        self._remote = remote
        self._stale_seconds, self._heartbeat_seconds = stale_seconds, heartbeat_seconds
        self._number = 0
        self._stop = threading.Event()
        self._mutex = threading.Lock()  # a heartbeat must not follow the release

    def acquire(self) -> None:
        """Takes the lock, also from a dead owner, and starts the heartbeat.

        Raises:
            LockedError: if another live process owns it.
        """
        while True:
            number = max(self._numbers(), default=0)
            owner = self._read(number) if number else {"released": True}
            if not owner.get("released"):
                reason = dead_reason(owner, self._age(number), self._stale_seconds)
                if not reason:
                    raise LockedError(
                        f"{self._remote.url} is {describe_owner(owner)}; wait for it, or use "
                        "another --workdir"
                    )
                self.previous_owner = f"{describe_owner(owner)} ({reason})"
            if not self._remote.create(_name(number + 1), self._content(released=False)):
                continue
            numbers = self._numbers()
            if (
                max(numbers, default=0) != number + 1
            ):  # this process was slow: that number had been deleted
                self._remote.delete([_name(number + 1)])
                continue
            self._number, self.previous_token = number + 1, str(owner.get("token", ""))
            self._remote.delete(_name(n) for n in numbers if n <= number)
            break
        threading.Thread(target=self._heartbeat, name="remote heartbeat", daemon=True).start()

    def check(self) -> None:
        """Checks that this process still owns the lock.

        Raises:
            LockedError: if another process has taken it over.
        """
        if self.is_lost:
            raise LockedError(
                f"{self._remote.url} was taken over by another process, or this process could not "
                "reach it for too long; run the same command again to resume"
            )

    def check_now(self) -> None:
        """Asks the store whether this process still owns the lock.

        Raises:
            LockedError: if another process has taken it over.
        """
        if self._number and max(self._numbers(), default=0) != self._number:
            self.is_lost = True
        self.check()

    def release(self) -> None:
        """Marks the lock as released, if this process owns it; the object stays."""
        self._stop.set()
        with self._mutex:
            if self._number and not self.is_lost:
                with contextlib.suppress(DiskError, LockedError):
                    self.check_now()
                    self._remote.write(_name(self._number), self._content(released=True))
            self._number = 0

    def _numbers(self) -> list[int]:
        texts = [name.rpartition("/")[2] for name in self._remote.list(LOCK_NAME)]
        return [int(text) for text in texts if is_digits(text)]

    def _read(self, number: int) -> JsonObject:
        try:
            owner = decode_json((self._remote.read(_name(number)) or b"").decode())
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _content(self, *, released: bool) -> bytes:
        return json.dumps(owner_record(self.token) | {"released": released}).encode()

    def _age(self, number: int) -> float:
        """Returns the seconds since the last heartbeat, by the clock of the store."""
        probe = f"{LOCK_NAME}/probe-{self.token}"
        self._remote.write(probe, b"")
        try:
            return self._remote.modified_time(probe) - self._remote.modified_time(_name(number))
        finally:
            self._remote.delete([probe])

    def _heartbeat(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self._heartbeat_seconds):
            with contextlib.suppress(DiskError), self._mutex:  # the store may be away briefly
                if self._stop.is_set():
                    return
                try:
                    self.check_now()
                except LockedError:
                    return
                self._remote.write(_name(self._number), self._content(released=False))
                last = time.monotonic()
            if time.monotonic() - last > self._stale_seconds and not self._stop.is_set():
                self.is_lost = True  # after so long, another process may have taken it over
                return


def _name(number: int) -> str:
    return f"{LOCK_NAME}/{number:06d}"
