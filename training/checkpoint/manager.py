"""Saves and restores checkpoints: orbax writes the arrays, a manifest with sha256 seals them.

A save is written to `STEP.TOKEN.writing/`. A thread waits for orbax, hashes the files, writes
MANIFEST.json last and reads everything back. Only then does it rename the folder to `STEP/` and
delete older checkpoints. A kill therefore leaves a folder that the next owner of the run's lock
removes, and never half a checkpoint.

The file system must have an atomic rename (local disks, NFS). A run in an object store has its
checkpoints in a scratch folder, from which `training/run/mirror.py` uploads them.
"""

import contextlib
import dataclasses
import datetime
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from errors import CheckpointError, DiskError, DistributedError, IsoflopError
from settings.json_types import JsonObject
from training.checkpoint import manifest, restore
from training.checkpoint.param_names import named_leaves, shapes_and_dtypes
from training.checkpoint.restore import STATE_FOLDER
from training.checkpoint.settings import CheckpointConfig
from training.checkpoint.store import CheckpointStore
from training.distributed.fault_injection import FaultInjector
from training.distributed.multihost import all_gather_object, run_on_main_process
from training.run.folder import RunFolder
from training.run.provenance import package_versions

T = TypeVar("T")


class CheckpointManager:
    """Saves and restores the checkpoints of a run whose lock this process holds.

    It is a context manager. `strict` refuses a damaged checkpoint instead of falling back to an
    earlier one. The leaves below `params_prefix` are the parameters, which must be finite.
    """

    def __init__(
        self,
        run: RunFolder,
        cfg: CheckpointConfig,
        faults: FaultInjector,
        *,
        strict: bool = False,
        params_prefix: str = "trainable",
    ):
        self.root = run.file_path("checkpoints")
        self.store = CheckpointStore(self.root, run_id=run.record["run_id"], verify=cfg.verify)
        # Durations of the last save in seconds, by phase: stall, write, commit.
        self.save_seconds: dict[str, float] = {}
        self._run, self._cfg, self._faults, self._strict = run, cfg, faults, strict
        self._params_prefix = params_prefix
        self._is_main_process = jax.process_index() == 0
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._consecutive_failures = 0
        self._verified_step: int | None = None  # `find_resume_step` has read its bytes already
        self._is_abandoned = False
        import orbax.checkpoint as ocp  # half a second, which only a training run needs

        # If orbax created folders in the background, a full disk would block it for five minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_not_orbax_record)
        if not isinstance(sys.unraisablehook, _StragglerFilter):
            sys.unraisablehook = _StragglerFilter(sys.unraisablehook)
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=options)
        self._orbax_args = ocp.args

    def save(
        self, step: int, state: PyTree, meta: Mapping[str, object], *, wait: bool = False
    ) -> float:
        """Starts a save in the background and returns the seconds for which it blocked.

        `state` may be donated to the next step at once. With `wait` the call returns when the
        checkpoint is durable; without it, `check_async_save` reports a failure.
        """
        start = time.perf_counter()
        self._run.check_owner()
        self._finish_pending()
        self._start_save(step, state, meta)
        # All processes must repeat the save together, since it contains collectives.
        if wait and any(all_gather_object(self._finish_pending())):
            self._start_save(step, state, meta)
            self._finish_pending()
        self.save_seconds["stall"] = time.perf_counter() - start
        return self.save_seconds["stall"]

    def is_due(self, step: int) -> bool:
        """Returns whether the settings ask for a save after `step`; all processes agree on it."""
        return bool(self._cfg.every) and step % self._cfg.every == 0

    def check_async_save(self) -> bool:
        """Returns True if the last save failed and the current state should be saved instead.

        The loop calls this at every step. After the first failure, disk space has been freed.

        Raises:
            DiskError: if two saves in a row have failed.
        """
        if self._thread is None or not self._thread.is_alive():
            return self._finish_pending()
        return False

    def wait_until_finished(self) -> None:
        """Returns when the last save is durable.

        Raises:
            DiskError: if that save has failed.
        """
        self._finish_pending(retry=False)

    def close(self) -> None:
        """Waits for the last save and closes orbax."""
        try:
            self.wait_until_finished()
        finally:
            self._orbax.close()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until a running save is durable; a second Ctrl-C does not wait for it."""
        if isinstance(error, (KeyboardInterrupt, DistributedError)):
            self._is_abandoned = True  # a save across hosts that have died would never end
        elif error is None:
            self.close()
        else:
            try:
                self.close()
            except DiskError as failure:
                self._run.log_event("disk_error", {"message": str(failure)})

    def newest_step(self) -> int | None:
        """Returns the newest valid step, or None; it changes no file."""
        return restore.find_checkpoint(self.root, check_hashes=self._cfg.verify).step

    def find_resume_step(self) -> int | None:
        """Returns the step to resume from, or None in a new run.

        Damaged checkpoints that are newer are moved to `corrupt/`. Only process 0 reads the folder
        and sends the result to the others, because a shared file system may show them old content.

        Raises:
            CheckpointError: if there are checkpoints but none is valid, or, under `strict`, if any
                is damaged.
        """
        step = run_on_main_process(self._find_resume_step)
        self._verified_step = step if self._cfg.verify else None
        return step

    def _find_resume_step(self) -> int | None:
        search = restore.find_checkpoint(self.root, check_hashes=self._cfg.verify)
        rejected = [*search.damaged, *search.nonfinite]
        corrupt = self.root / "corrupt"
        has_corrupt = corrupt.is_dir() and any(corrupt.iterdir())
        if search.step is None and (rejected or has_corrupt) or self._strict and search.damaged:
            raise CheckpointError(restore.no_valid_checkpoint_message(self.root, search))
        for item in search.damaged:
            target = self.store.quarantine(item.path)
            message = (
                f"checkpoint {item.path.name} is damaged ({item.problem}) and was moved to "
                f"{target}; falling back to step {search.step}"
            )
            self._run.log_event("checkpoint_fallback", {"step": search.step, "message": message})
        for item in search.nonfinite:
            message = (
                f"checkpoint {item.path.name}: {restore.nonfinite_message(item)}; falling back to "
                f"step {search.step}"
            )
            self._run.log_event("checkpoint_fallback", {"step": search.step, "message": message})
        if search.step is not None and not search.nonfinite:
            self.store.prune(search.step, self._cfg.keep)  # a kill may have come before it
        return search.step

    def restore(self, step: int, abstract: T) -> T:
        """Returns the state at `step`, sharded as in `abstract`; see `restore.restore`."""
        check_hashes = self._cfg.verify and step != self._verified_step
        run_id = self._run.record["run_id"]
        return restore.restore(self.root, step, abstract, run_id=run_id, check_hashes=check_hashes)

    def read_meta(self, step: int, required_keys: Sequence[str] = ()) -> JsonObject:
        """Returns the metadata that was saved with `step`; see `restore.read_meta`."""
        return restore.read_meta(self.root, step, required_keys)

    def _start_save(self, step: int, state: PyTree, meta: Mapping[str, object]) -> None:
        """Copies `state` for orbax, before the caller may donate it, and starts the thread."""
        leaves = named_leaves(state)
        folder = self.store.temporary_folder(step)
        names = [
            name
            for name, leaf in leaves.items()
            if name.startswith(f"{self._params_prefix}.")
            and jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        content = {
            "writer": f"isoflop {package_versions().get('isoflop', 'of no version')}",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "run_id": self._run.record["run_id"],
            "step": step,
            "leaves": shapes_and_dtypes(leaves),
            "meta": meta,
        }
        try:
            with jax.transfer_guard("allow"):  # a save reads the state from the device
                is_finite = (
                    _are_finite([leaves[name] for name in names]) if names else np.ones(0, bool)
                )
                request = self._orbax_args.StandardSave(leaves)
                self._orbax.save((folder / STATE_FOLDER).absolute(), args=request)
        except OSError as error:
            self._error = error
            return
        self._thread = threading.Thread(
            target=self._finish_save, args=(folder, content, names, is_finite), name="checkpoint"
        )
        self._thread.daemon = True  # so that a second Ctrl-C does not wait for it
        self._thread.start()

    def _finish_save(
        self, folder: Path, content: JsonObject, names: list[str], is_finite: ArrayLike
    ) -> None:
        """Waits for orbax, then seals, verifies, publishes and prunes; runs in the background."""
        try:
            start = time.perf_counter()
            self._orbax.wait_until_finished()
            written = time.perf_counter()
            self._faults.at_save(content["step"])
            flags = np.asarray(is_finite)
            nonfinite = [name for name, flag in zip(names, flags, strict=True) if not flag]
            if self._is_main_process and not self._is_abandoned:
                self._commit(folder, content | {"nonfinite_params": nonfinite})
                self.save_seconds |= {
                    "write": written - start,
                    "commit": time.perf_counter() - written,
                }
        except Exception as error:  # any kind: the training thread raises it
            self._error = error

    def _commit(self, folder: Path, content: JsonObject) -> None:
        step, nonfinite = content["step"], content["nonfinite_params"]
        if problem := restore.find_unreadable_leaf(folder, content["leaves"]):
            raise OSError(f"the written checkpoint does not open: {problem}")
        manifest.write(folder, content)
        if self._cfg.verify:
            manifest.drop_page_cache(folder)
        if problem := manifest.inspect_folder(folder, check_hashes=self._cfg.verify).problem:
            raise OSError(f"the written checkpoint does not read back: {problem}")
        if nonfinite:
            message = (
                f"checkpoint {step}: {len(nonfinite)} parameters are not finite ({nonfinite[0]})"
            )
            self._run.log_event(
                "nonfinite_params", {"step": step, "parameters": nonfinite, "message": message}
            )
        self.store.publish(folder, step, bool(nonfinite))
        if not nonfinite:
            self.store.prune(step, self._cfg.keep)
        self._run.publish_checkpoint()

    def _finish_pending(self, *, retry: bool = True) -> bool:
        """Waits for the thread; True means that the save failed and another one may succeed.

        Raises:
            DiskError: if two saves in a row failed, or one failed and `retry` is False.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._consecutive_failures = self._consecutive_failures if self._error else 0
        error, self._error = self._error, None
        if error is None:
            return False
        self._consecutive_failures += 1
        with contextlib.suppress(IsoflopError, OSError):
            self.store.free_space()
        message = f"checkpoint not saved in {self.root}: {_error_line(error)}"
        if self._consecutive_failures > 1 or not retry:
            raise DiskError(
                f"{message}; earlier checkpoints are intact, free space and run the command again"
            ) from error
        self._run.log_event("disk_error", {"message": f"{message}; freed space, saving once more"})
        return True


@jax.jit
def _are_finite(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays])


def _error_line(error: Exception, max_chars: int = 200) -> str:
    """Returns the reason in a message: tensorstore puts paths first and appends its request."""
    text = " ".join(str(error).split()).partition(" [")[0].rpartition('": ')[2]
    text = text or type(error).__name__
    return text if len(text) <= max_chars else f"... {text[-max_chars:]}"


class _Unraisable(Protocol):
    """The part of what Python passes to `sys.unraisablehook` that the filter reads."""

    @property
    def exc_value(self) -> BaseException | None:
        """The exception."""


@dataclasses.dataclass(frozen=True)
class _StragglerFilter:
    """A hook for exceptions that nothing can catch; it drops those of writes after a failed one.

    Tensorstore reports the end of such a write to an event loop that orbax has closed.
    """

    previous: Callable[..., object]

    def __call__(self, event: _Unraisable) -> None:
        if str(event.exc_value) != "Event loop is closed":
            self.previous(event)


def _is_not_orbax_record(record: logging.LogRecord) -> bool:
    """Filters out orbax's repeated tracebacks; the project prints one line and an exit code."""
    return "orbax" not in record.pathname + record.getMessage()
