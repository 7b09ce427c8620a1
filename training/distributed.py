"""Hosts that train one model together: finding each other, agreeing, deciding alike.

Clusters start one process a host: `training/cluster.py` knows Slurm's and Open MPI's variables, JAX
finds Kubernetes and TPU VMs. One process alone passes through everything here unchanged.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

import errors
from errors import ConfigError, DistributedError, IsoflopError
from training import cluster
from training.cluster import Place
from training.roll_call import roll_call
from training.tree import differences

GONE = re.compile(
    r"gloo|nccl|connection|socket|heartbeat|peer|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED",
    re.IGNORECASE,
)
HEARTBEAT = 30  # seconds until a host that is silent counts as dead, and JAX ends the others
OWN = ("data.cache", "train.compile_cache", "debug.fault")  # settings that hosts need not share

How = Literal["auto", "on", "off"]
T = TypeVar("T")


def join(how: How, place: Place, timeout: int) -> None:
    """Find the other hosts, before anything else of JAX; DistributedError after `timeout` seconds.

    "auto" joins where a cluster is found and is one process elsewhere, "on" insists.
    """
    _check(how, place)
    if how == "off" or jax.distributed.is_initialized():
        return
    if not place.given and (problem := cluster.broken()):
        raise ConfigError(f"{problem}; or set --distributed=off for one process alone")
    place = place if place.given else cluster.place()
    if place.processes == 1 and how == "auto":
        return
    if place.given:
        host, _, port = place.coordinator.rpartition(":")
        roll_call(host.strip("[]"), int(port), place.process, place.processes, timeout)
    where = (place.coordinator, place.processes, place.process) if place.given else (None,) * 3
    try:
        jax.distributed.initialize(
            *where,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate" if place.given else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        # No cluster; or JAX is in use already, so that this process is alone.
        if "should be defined" not in str(error) and "must be called before" not in str(error):
            raise
        if how == "on" or place.given:
            raise ConfigError(
                "--distributed=on, but no cluster is found here; give --coordinator=HOST:PORT "
                "--process_id=I --processes=N"
            ) from None


def left(code: int) -> int:
    """`code`; of several processes, one that failed ends here, without waiting for the others."""
    if code and jax.distributed.is_initialized():
        leave(code)
    return code


def leave(code: int) -> NoReturn:
    """End this process at once, whatever its threads are at."""
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(3 * first())  # with process 0 goes what the others talk through
    os._exit(code)


def speaker() -> str:
    """What stands before an error, so that one log of all hosts can be read."""
    return f"host {jax.process_index()}: " if jax.distributed.is_initialized() else ""


@contextlib.contextmanager
def companions() -> Iterator[None]:
    """A collective that fails, because a host is gone, is a DistributedError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # eager collectives raise the latter
        if jax.process_count() == 1 or not GONE.search(str(error)):
            raise
        line = " ".join(str(error).split())[:160]
        raise DistributedError(
            f"another host is gone ({line}); start all hosts again: the run goes on from its last "
            "checkpoint"
        ) from error


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """What each process holds, as JSON, in the order of processes."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def whole(tree: Any) -> Any:
    """Arrays as numpy, on every process, wherever their pieces are."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(tree, tiled=True)


def decided(function: Callable[[], T]) -> T:
    """What process 0 makes of `function` (JSON), on all of them; its error ends them all."""
    if jax.process_count() == 1:
        return function()
    said: dict[str, Any] = {}
    if first():
        try:
            said = {"value": function()}
        except IsoflopError as error:
            said = {"error": type(error).__name__, "message": str(error)}
    said = gathered(said)[0]
    if "error" in said:
        raise getattr(errors, said["error"])(said["message"])
    return said["value"]


def agree(what: str, record: Mapping[str, Any]) -> None:
    """DistributedError, on every process, that names what in `record` (JSON) is not the same."""
    rows = gathered(record)
    found = [
        f"{key} is {_short(a)} on host 0, {_short(b)} on host {host}"
        for host, row in enumerate(rows)
        for key, a, b in differences(rows[0], row)
        if not key.endswith(OWN)
    ]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise DistributedError(
            f"hosts disagree in {what}: {'; '.join(found[:5])}{more}; start all of them with the "
            "same command, code and data"
        )


class Votes:
    """What any process asks for, known to all of them one step later: at the same step."""

    def __init__(self) -> None:
        self._world = jax.process_count()
        if self._world > 1:
            mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
            self._apart = jax.sharding.NamedSharding(mesh, jax.P("all"))
            self._share = jax.local_device_count()
            together = jax.sharding.NamedSharding(mesh, jax.P())
            self._most = jax.jit(lambda x: x.max(axis=0), out_shardings=together)
        self._last: jax.Array | None = None

    def cast(self, *asked: bool) -> tuple[bool, ...]:
        """Whether any process asked at the step before; of one process alone, now."""
        if self._world == 1:
            return asked
        known = None if self._last is None else np.asarray(jax.device_get(self._last))
        mine = np.tile(np.array(asked, np.int32), (self._share, 1))
        with jax.transfer_guard("allow"):
            votes = jax.make_array_from_process_local_data(self._apart, mine)
        self._last = self._most(votes)
        return tuple(map(bool, known)) if known is not None else (False,) * len(asked)


def _check(how: How, place: Place) -> None:
    if not place.given:
        return
    if how == "off":
        raise ConfigError("--distributed=off has no use for --coordinator; leave one of them out")
    if not place.coordinator or place.process < 0 or place.processes < 1:
        raise ConfigError(
            f"--coordinator={place.coordinator} --process_id={place.process} "
            f"--processes={place.processes}: give all three, or none where a cluster tells"
        )
    if place.process >= place.processes:
        raise ConfigError(
            f"--process_id={place.process} must be below --processes={place.processes}; the first "
            "is 0"
        )
    host, _, port = place.coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"--coordinator={place.coordinator!r} is not HOST:PORT of process 0, whose port is "
            "between 1 and 65535"
        )


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"
