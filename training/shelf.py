"""The folder of a run's checkpoints on disk: whose it is, what may be deleted, and when.

Nothing is deleted but in a folder with this run's marker, and there only what has the form of our
own: folders left by a kill, and sealed checkpoints of this run. Strays are left alone.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from errors import CheckpointError, DiskError
from training import manifest, restore
from training.files import disk, inside, read_json, remove_tree, sync_folder, write_json
from training.restore import steps

LEFT_OVER = re.compile(r"\d+\.[\w-]+\.(writing|discarded)")
REPLACED = re.compile(r"(\d+)\.replaced")
MARKER = "OWNER.json"
PAUSES = (0.0, 0.1, 0.4, 1.0)  # seconds before each try to clear a folder away


class Shelf:
    """Checkpoints by step below `root`, in the hands of the owner of the run's lock."""

    def __init__(self, root: Path, *, run_id: str, verify: bool):
        self.root = inside(root.parent, root.name)
        self._run_id, self._verify = run_id, verify
        # Every process must name a folder alike; one process alone keeps out of its own past.
        self._token = secrets.token_hex(4) if jax.process_count() == 1 else "all"
        self._saves = 0
        if jax.process_index() == 0:
            self._own()

    def writing(self, step: int) -> Path:
        """Where a save of `step` is written until it is sealed: a new folder each time, because
        writes of a save that failed may go on after orbax has given it up.
        """
        self._saves += 1
        return self.root / f"{step}.{self._token}-{self._saves}.writing"

    def publish(self, folder: Path, step: int, tainted: bool) -> None:
        """Rename into place. A checkpoint that is there is kept until then, a stray for good."""
        target, replaced = self.root / str(step), self.root / f"{step}.replaced"
        if os.path.lexists(target):
            old = manifest.look(target, hashes=False)
            if tainted and old.content and not old.problem and not old.content.get("tainted"):
                remove_tree(folder, self.root)  # a good one is never replaced by a bad one
                return
            if old.content:
                os.rename(target, replaced)
            else:
                self.set_aside(target)
        os.rename(folder, target)
        sync_folder(self.root)
        if replaced.is_dir():
            remove_tree(replaced, self.root)

    def prune(self, newest: int, keep: int) -> None:
        """Delete this run's checkpoints but the last `keep` good ones up to `newest`, a good one.

        Those beyond `newest` were left behind when the run went back.
        """
        good = 0
        for step in sorted(steps(self.root), key=lambda n: (n <= newest, n), reverse=True):
            path = self.root / str(step)
            try:
                found = manifest.look(path, hashes=False)
            except CheckpointError:
                continue  # of a newer format: not ours to delete
            if found.problem or not found.content or found.content["run_id"] != self._run_id:
                continue
            if step <= newest and not found.content.get("tainted") and good < keep:
                good += 1
                continue
            gone = self.root / f"{step}.{self._token}.discarded"
            os.rename(path, gone)
        self._clear()

    def make_room(self) -> None:
        """Delete what a failed save left, and all good checkpoints but the newest."""
        self._clear()
        last = restore.search(self.root, hashes=self._verify).step
        if last is not None:
            self.prune(last, 1)

    def set_aside(self, path: Path) -> Path:
        """Move a damaged checkpoint or a stray to `corrupt/`, under a name that is free there."""
        with disk(path):
            there = inside(self.root, "corrupt")
            there.mkdir(exist_ok=True)
            names = (f"{path.name}.{n}" if n else path.name for n in range(10**6))
            target = next(there / name for name in names if not os.path.lexists(there / name))
            os.rename(path, target)
            sync_folder(self.root)
        return target

    def _own(self) -> None:
        """Mark the folder as this run's, and clear away what a kill left."""
        with disk(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            names = [entry.name for entry in self.root.iterdir() if not entry.is_symlink()]
            owner = self._owner()
            if reason := self._not_ours(owner, names):
                raise CheckpointError(
                    f"{self.root} {reason}; use another --workdir, or --init_from for the "
                    "parameters"
                )
            if owner != self._run_id:
                write_json(self.root / MARKER, {"run_id": self._run_id})
            self._clear()
            for match in filter(None, map(REPLACED.fullmatch, names)):
                if self._sealed(int(match[1])):
                    remove_tree(self.root / match[0], self.root)
                else:
                    os.rename(self.root / match[0], self.root / match[1])

    def _owner(self) -> str | None:
        """The run that the marker names, "" if it is damaged, None without one."""
        try:
            marker = read_json(self.root / MARKER)
        except CheckpointError:
            return ""
        return None if marker is None else str(marker.get("run_id", ""))

    def _not_ours(self, owner: str | None, names: Sequence[str]) -> str:
        """Why this run may not use the folder, in which `names` are; "" if it may.

        A run that ended before it wrote anything leaves a marker with nothing behind it.
        """
        sealed = [n for n in steps(self.root) if self._sealed(n)]
        kept = bool(sealed) or any(map(REPLACED.fullmatch, names))
        if owner == "":
            found = (manifest.look(self.root / str(n), hashes=False).content for n in sealed)
            owners = {content["run_id"] for content in found if content}
            return "" if owners <= {self._run_id} else f"is of run {', '.join(sorted(owners))}"
        if owner is None:
            kept = kept or any(map(LEFT_OVER.fullmatch, names))
            reason = f"has checkpoints but no {MARKER}: it is not known whose they are"
            return reason if kept else ""
        if owner == self._run_id or not kept:
            return ""
        return f"is of run {owner}, not of this run ({self._run_id})"

    def _clear(self) -> None:
        """Delete left-over folders; one that is still written to is left to the next time."""
        for pause in PAUSES:
            found = [e for e in self.root.iterdir() if LEFT_OVER.fullmatch(e.name)]
            found = [entry for entry in found if not entry.is_symlink()]
            if not found:
                return
            time.sleep(pause)
            for entry in found:
                with contextlib.suppress(DiskError):
                    remove_tree(entry, self.root)

    def _sealed(self, step: int) -> bool:
        return (self.root / str(step) / manifest.NAME).is_file()
