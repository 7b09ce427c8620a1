"""Manages the folder of a run's checkpoints on disk: who owns it, what is deleted, and when.

Files are deleted only in a folder with this run's marker, and only if they have the names that this
module writes: folders that a kill left behind, and sealed checkpoints of this run. Foreign files
stay.
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
from storage.disk_errors import disk_errors
from training.checkpoint import manifest, restore
from training.checkpoint.restore import list_steps
from training.run.atomic_io import read_json, write_json
from training.run.run_paths import remove_tree, safe_join, sync_folder

LEFTOVER_PATTERN = re.compile(r"[0-9]+\.[\w-]+\.(writing|discarded)")
REPLACED_PATTERN = re.compile(r"([0-9]+)\.replaced")
OWNER_FILE = "OWNER.json"
RETRY_DELAYS = (0.0, 0.1, 0.4, 1.0)  # seconds before each attempt to delete a folder


class CheckpointStore:
    """The checkpoints by step below `root`; the process must hold the run's lock."""

    def __init__(self, root: Path, *, run_id: str, verify: bool):
        self.root = safe_join(root.parent, root.name)
        self._run_id, self._verify = run_id, verify
        # All processes must use the same folder names. A single process adds a random token, so
        # that it never reuses a folder of an earlier attempt.
        self._token = secrets.token_hex(4) if jax.process_count() == 1 else "all"
        self._num_saves = 0
        if jax.process_index() == 0:
            self._claim()

    def temporary_folder(self, step: int) -> Path:
        """Returns the folder to which a save of `step` is written until it is sealed.

        Every call returns a new folder, because writes of a failed save may continue after orbax
        has abandoned it.
        """
        self._num_saves += 1
        return self.root / f"{step}.{self._token}-{self._num_saves}.writing"

    def publish(self, folder: Path, step: int, has_nonfinite: bool) -> None:
        """Renames `folder` to its step.

        An existing checkpoint is kept until the rename; a foreign folder is moved to `corrupt/`.
        """
        target, replaced = self.root / str(step), self.root / f"{step}.replaced"
        if os.path.lexists(target):
            old = manifest.inspect_folder(target, check_hashes=False)
            if (
                has_nonfinite
                and old.content
                and not old.problem
                and not old.content.get("nonfinite_params")
            ):
                remove_tree(folder, self.root)  # a finite checkpoint is never replaced
                return
            if old.content:
                os.rename(target, replaced)
            else:
                self.quarantine(target)
        os.rename(folder, target)
        sync_folder(self.root)
        if replaced.is_dir():
            remove_tree(replaced, self.root)

    def prune(self, newest_step: int, keep: int) -> None:
        """Deletes this run's checkpoints except the last `keep` valid ones up to `newest_step`.

        Checkpoints after `newest_step` are from before a rollback and are deleted too.
        """
        num_valid = 0
        for step in sorted(
            list_steps(self.root), key=lambda n: (n <= newest_step, n), reverse=True
        ):
            path = self.root / str(step)
            try:
                folder = manifest.inspect_folder(path, check_hashes=False)
            except CheckpointError:
                continue  # another format: this version must not delete it
            if folder.problem or not folder.content or folder.content["run_id"] != self._run_id:
                continue
            is_finite = not folder.content.get("nonfinite_params")
            if step <= newest_step and is_finite and num_valid < keep:
                num_valid += 1
                continue
            os.rename(path, self.root / f"{step}.{self._token}.discarded")
        self._remove_leftovers()

    def free_space(self) -> None:
        """Deletes the files of a failed save, and all valid checkpoints except the newest."""
        self._remove_leftovers()
        newest = restore.find_checkpoint(self.root, check_hashes=self._verify).step
        if newest is not None:
            self.prune(newest, 1)

    def quarantine(self, path: Path) -> Path:
        """Moves a damaged checkpoint or a foreign folder to `corrupt/` and returns its new path."""
        with disk_errors(path):
            folder = safe_join(self.root, "corrupt")
            folder.mkdir(exist_ok=True)
            names = (f"{path.name}.{n}" if n else path.name for n in range(10**6))
            target = next(folder / name for name in names if not os.path.lexists(folder / name))
            os.rename(path, target)
            sync_folder(self.root)
        return target

    def _claim(self) -> None:
        """Marks the folder as this run's, and deletes or completes what a kill left behind.

        Raises:
            CheckpointError: if the folder belongs to another run.
        """
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            names = [entry.name for entry in self.root.iterdir() if not entry.is_symlink()]
            owner = self._read_owner()
            if reason := self._foreign_reason(owner, names):
                raise CheckpointError(
                    f"{self.root} {reason}; use another --workdir, or --init_from for the "
                    "parameters"
                )
            if owner != self._run_id:
                write_json(self.root / OWNER_FILE, {"run_id": self._run_id})
            self._remove_leftovers()
            for match in filter(None, map(REPLACED_PATTERN.fullmatch, names)):
                if self._has_manifest(int(match[1])):
                    remove_tree(self.root / match[0], self.root)
                else:
                    os.rename(self.root / match[0], self.root / match[1])

    def _read_owner(self) -> str | None:
        """Returns the run_id in the marker; "" if the marker is damaged, None if it is missing."""
        try:
            marker = read_json(self.root / OWNER_FILE)
        except CheckpointError:
            return ""
        return None if marker is None else str(marker.get("run_id", ""))

    def _foreign_reason(self, owner: str | None, names: Sequence[str]) -> str:
        """Explains why this run may not use the folder with the entries `names`; "" if it may.

        A marker without checkpoints is from a run that ended before its first save.
        """
        sealed = [n for n in list_steps(self.root) if self._has_manifest(n)]
        has_checkpoints = bool(sealed) or any(map(REPLACED_PATTERN.fullmatch, names))
        if owner == "":
            contents = (
                manifest.inspect_folder(self.root / str(n), check_hashes=False).content
                for n in sealed
            )
            owners = {content["run_id"] for content in contents if content}
            return "" if owners <= {self._run_id} else f"is of run {', '.join(sorted(owners))}"
        if owner is None:
            has_files = has_checkpoints or any(map(LEFTOVER_PATTERN.fullmatch, names))
            reason = f"has checkpoints but no {OWNER_FILE}, so that their run is unknown"
            return reason if has_files else ""
        if owner == self._run_id or not has_checkpoints:
            return ""
        return f"is of run {owner}, not of this run ({self._run_id})"

    def _remove_leftovers(self) -> None:
        """Deletes leftover folders; one that is still written to stays until the next call."""
        for delay in RETRY_DELAYS:
            entries = [e for e in self.root.iterdir() if LEFTOVER_PATTERN.fullmatch(e.name)]
            entries = [entry for entry in entries if not entry.is_symlink()]
            if not entries:
                return
            time.sleep(delay)
            for entry in entries:
                with contextlib.suppress(DiskError):
                    remove_tree(entry, self.root)

    def _has_manifest(self, step: int) -> bool:
        return (self.root / str(step) / manifest.FILE_NAME).is_file()
