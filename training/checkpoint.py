"""Checkpoints that can be trusted: orbax writes the arrays, a manifest with sha256 seals them.

A save goes to `STEP.TOKEN.writing/`; a thread waits for orbax, hashes, writes MANIFEST.json last,
reads everything back, and only then renames the folder to `STEP/` and deletes older ones. So a kill
leaves a folder that the next owner of the run's lock removes, and never half a checkpoint.

For file systems with atomic rename (local, NFS); object stores are left out on purpose.
"""

import contextlib
import datetime
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from errors import CheckpointError, DiskError, DistributedError, IsoflopError
from schema import Count, Natural, config
from training import manifest, restore
from training.distributed import decided, gathered
from training.environment import packages
from training.faults import Faults
from training.leaves import layout, named_leaves
from training.restore import STATE
from training.run import RunFolder
from training.shelf import Shelf


@config
class CheckpointConfig:
    every: Natural = 200  # steps between saves; 0: only at the end
    keep: Count = 2  # newest good ones that stay
    verify: bool = True  # read all bytes back after a save and before a restore; else sizes only


class Checkpoints:
    """The checkpoints of `run`, which holds the lock of its folder; use as a context manager.

    `strict` refuses a damaged checkpoint instead of going back to an earlier one. `describe` goes
    into every manifest. The parameters, which must be finite, are the leaves below `parameters`.
    """

    def __init__(
        self,
        run: RunFolder,
        cfg: CheckpointConfig,
        faults: Faults,
        *,
        strict: bool = False,
        describe: Mapping[str, Any] | None = None,
        parameters: str = "learner",
    ):
        self.root = run.file("checkpoints")
        self.shelf = Shelf(self.root, run_id=run.record["run_id"], verify=cfg.verify)
        self.seconds: dict[str, float] = {}  # of the last save: stall, write, seal
        self._run, self._cfg, self._faults, self._strict = run, cfg, faults, strict
        self._describe, self._parameters = describe or {}, parameters
        self._leads = jax.process_index() == 0
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failures = 0  # in a row
        self._checked: int | None = None  # the step whose bytes `latest` has read
        self._abandoned = False
        # Making folders in the background would turn a full disk into a wait of five minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_not_by_orbax)
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=options)

    def save(self, step: int, state: Any, meta: Mapping[str, Any], *, wait: bool = False) -> float:
        """Save in the background; with `wait`, until it is durable. Returns the seconds it took.

        `state` may be donated to the next step at once. Without `wait` failures show in `poll`.
        """
        begun = time.perf_counter()
        self._run.lock.check()
        self._settle()
        self._start(step, state, meta)
        if wait and any(gathered(self._settle())):  # of all, or the others would go on without
            self._start(step, state, meta)
            self._settle()
        self.seconds["stall"] = time.perf_counter() - begun
        return self.seconds["stall"]

    def due(self, step: int) -> bool:
        """Whether to save after `step` by the settings, which all processes have alike."""
        return bool(self._cfg.every) and step % self._cfg.every == 0

    def poll(self) -> bool:
        """Ask at every step: True when the last save failed and room was made, so that the state
        of now should be saved. The second failure in a row is a DiskError.
        """
        if self._thread is None or not self._thread.is_alive():
            return self._settle()
        return False

    def wait(self) -> None:
        """Return when the last save is durable, else DiskError."""
        self._settle(retry=False)

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was being saved gets durable, except that a second Ctrl-C does not wait for it."""
        if isinstance(error, (KeyboardInterrupt, DistributedError)):
            self._abandoned = True  # a save with hosts that are gone would never end
        elif error is None:
            self.close()
        else:
            try:
                self.close()
            except DiskError as failure:
                self._run.event("disk", {"message": str(failure)})

    def newest(self) -> int | None:
        """The newest good step, if any; changes nothing and refuses nothing."""
        return restore.search(self.root, hashes=self._cfg.verify).step

    def latest(self) -> int | None:
        """The step to go on from, None in a new run. Damaged newer ones are moved to `corrupt/`.

        When there are some but none is good, or under `strict` any is damaged: CheckpointError.
        Process 0 looks, the others hear of it: they may see its disk late.
        """
        step = decided(self._latest)
        self._checked = step if self._cfg.verify else None
        return step

    def _latest(self) -> int | None:
        found = restore.search(self.root, hashes=self._cfg.verify)
        passed = [*found.damaged, *found.tainted]
        lost = (self.root / "corrupt").is_dir() and any((self.root / "corrupt").iterdir())
        if found.step is None and (passed or lost) or self._strict and found.damaged:
            raise CheckpointError(restore.nothing_good(self.root, found))
        for item in found.damaged:
            there = self.shelf.set_aside(item.path)
            message = (
                f"checkpoint {item.path.name} is damaged ({item.problem}); moved to {there}, "
                f"going back to step {found.step}"
            )
            self._run.event("fallback", {"step": found.step, "message": message})
        for item in found.tainted:
            message = f"checkpoint {item.path.name}: {restore.taint(item)}; back to {found.step}"
            self._run.event("fallback", {"step": found.step, "message": message})
        return found.step

    def restore(self, step: int, abstract: Any) -> Any:
        """The state at `step`, placed as `abstract` says; see `training.restore`."""
        hashes = self._cfg.verify and step != self._checked
        run_id = self._run.record["run_id"]
        return restore.restore(self.root, step, abstract, run_id=run_id, hashes=hashes)

    def read_meta(self, step: int, require: Sequence[str] = ()) -> dict[str, Any]:
        return restore.read_meta(self.root, step, require)

    def _start(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """The part that must see `state` before it is donated."""
        leaves = named_leaves(state)
        folder = self.shelf.writing(step)
        names = [
            name
            for name, leaf in leaves.items()
            if name.startswith(f"{self._parameters}.") and jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        content = {
            "writer": f"isoflop {packages().get('isoflop', 'of no version')}",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **{"run_id": self._run.record["run_id"], "step": step, "leaves": layout(leaves)},
            **{"describe": self._describe, "meta": meta},
        }
        try:
            with jax.transfer_guard("allow"):  # reading the state is the point
                finite = _finite([leaves[name] for name in names]) if names else np.ones(0, bool)
                request = ocp.args.StandardSave(leaves)
                self._orbax.save((folder / STATE).absolute(), args=request)
        except OSError as error:
            self._error = error
            return
        self._thread = threading.Thread(
            target=self._finish, args=(folder, content, names, finite), name="checkpoint"
        )
        self._thread.daemon = True  # a run that is stopped at once does not wait for it
        self._thread.start()

    def _finish(self, folder: Path, content: dict[str, Any], names: list[str], finite: Any) -> None:
        """In the background: wait for orbax, seal, verify, publish, prune."""
        try:
            begun = time.perf_counter()
            self._orbax.wait_until_finished()
            written = time.perf_counter()
            self._faults.at_save(content["step"])
            ok = np.asarray(finite)
            tainted = [name for name, good in zip(names, ok, strict=True) if not good]
            if self._leads and not self._abandoned:
                self._seal(folder, content | {"tainted": tainted})
                self.seconds |= {"write": written - begun, "seal": time.perf_counter() - written}
        except Exception as error:  # of any kind: it surfaces in the training thread
            self._error = error

    def _seal(self, folder: Path, content: dict[str, Any]) -> None:
        step, tainted = content["step"], content["tainted"]
        manifest.write(folder, content)
        if self._cfg.verify:
            manifest.forget_cache(folder)
        if problem := manifest.look(folder, hashes=self._cfg.verify).problem:
            raise OSError(f"what was written does not read back: {problem}")
        if tainted:
            message = f"checkpoint {step}: {len(tainted)} parameters are not finite ({tainted[0]})"
            self._run.event("tainted", {"step": step, "parameters": tainted, "message": message})
        self.shelf.publish(folder, step, bool(tainted))
        if not tainted:
            self.shelf.prune(step, self._cfg.keep)

    def _settle(self, *, retry: bool = True) -> bool:
        """Wait for the thread. True: it failed, room was made, another save may succeed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._failures = self._failures if self._error else 0
        error, self._error = self._error, None
        if error is None:
            return False
        self._failures += 1
        with contextlib.suppress(IsoflopError, OSError):
            self.shelf.make_room()
        message = f"checkpoint not saved in {self.root}: {_line(error)}"
        if self._failures > 1 or not retry:
            raise DiskError(
                f"{message}; earlier checkpoints are intact, free space and run again"
            ) from error
        self._run.event("disk", {"message": f"{message}; made room, saving once more"})
        return True


@jax.jit
def _finite(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays])


def _line(error: Exception, most: int = 200) -> str:
    """The end of what went wrong: tensorstore begins with where, and appends its whole request."""
    text = " ".join(str(error).split()).partition(" [")[0] or type(error).__name__
    return text if len(text) <= most else f"... {text[-most:]}"


def _not_by_orbax(record: logging.LogRecord) -> bool:
    """It prints a failure several times, with tracebacks; here it is one line and an exit code."""
    return "orbax" not in record.pathname + record.getMessage()
