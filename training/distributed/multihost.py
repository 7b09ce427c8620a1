"""Connects the hosts that train one model, compares their settings, and shares their decisions.

Clusters start one process per host: `training/distributed/cluster_env.py` reads the variables of
Slurm and Open MPI, and JAX detects Kubernetes and TPU VMs. With a single process, all functions of
this module return immediately.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

import errors
from errors import ConfigError, DistributedError, IsoflopError
from formatting import truncate_middle
from settings.json_types import JsonObject
from settings.tree import differences
from training.distributed import cluster_env
from training.distributed.cluster_env import ProcessInfo
from training.distributed.rendezvous import rendezvous

PEER_LOST_PATTERN = re.compile(
    r"gloo|nccl|connection|socket|heartbeat|peer|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED",
    re.IGNORECASE,
)
HEARTBEAT_TIMEOUT = 30  # seconds without a heartbeat after which JAX ends the other hosts
# Settings that may differ between hosts.
PER_HOST_SETTINGS = ("data.cache", "train.compile_cache", "debug.inject_fault")

DistributedMode = Literal["auto", "on", "off"]
T = TypeVar("T")


def initialize(mode: DistributedMode, process_info: ProcessInfo, timeout: int) -> None:
    """Connects this process to the others; it must be called before any other use of JAX.

    "auto" connects if a cluster is detected and trains on one process otherwise; "on" requires a
    cluster. If processes are missing after `timeout` seconds, it is a DistributedError.

    Raises:
        ConfigError: if flags or the variables of a cluster are incomplete, or "on" finds none.
        RuntimeError: if JAX cannot connect.
        ValueError: if JAX cannot connect.
    """
    _check_process_info(mode, process_info)
    if mode == "off" or jax.distributed.is_initialized():
        return
    if not process_info.is_set and (problem := cluster_env.incomplete_env_error()):
        raise ConfigError(f"{problem}; or set --distributed=off to train on one process")
    process_info = process_info if process_info.is_set else cluster_env.detect_process()
    if process_info.num_processes == 1 and mode == "auto":
        return
    if process_info.is_set:
        host, _, port = process_info.coordinator_address.rpartition(":")
        rendezvous(
            host.strip("[]"),
            int(port),
            process_info.process_id,
            process_info.num_processes,
            timeout,
        )
    arguments = (
        (process_info.coordinator_address, process_info.num_processes, process_info.process_id)
        if process_info.is_set
        else (None,) * 3
    )
    try:
        jax.distributed.initialize(
            *arguments,
            local_device_ids=process_info.local_device_ids,
            cluster_detection_method="deactivate" if process_info.is_set else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        # There is no cluster, or JAX is in use already: this process trains alone.
        if "should be defined" not in str(error) and "must be called before" not in str(error):
            raise
        if mode == "on" or process_info.is_set:
            raise ConfigError(
                "--distributed=on, but no cluster is detected; give "
                "--coordinator_address=HOST:PORT --process_id=I --num_processes=N"
            ) from None


def exit_if_failed(code: int) -> int:
    """Returns `code`; a failed process of several ends here, without waiting for the others."""
    if code and jax.distributed.is_initialized():
        hard_exit(code)
    return code


def hard_exit(code: int) -> NoReturn:
    """Ends this process immediately, without waiting for its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(3 * is_main_process())  # process 0 hosts the connections of the others
    os._exit(code)


def host_prefix() -> str:
    """Returns a prefix for errors, so that a common log of all hosts is readable."""
    return f"host {jax.process_index()}: " if jax.distributed.is_initialized() else ""


@contextlib.contextmanager
def peer_errors() -> Generator[None, None, None]:
    """Turns the failure of a collective, caused by the death of a host, into a DistributedError.

    Raises:
        DistributedError: if the body raises an error of a lost connection.
        RuntimeError: if the body raises another one.
        ValueError: if the body raises another one.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # eager collectives raise a ValueError
        if jax.process_count() == 1 or not PEER_LOST_PATTERN.search(str(error)):
            raise
        line = " ".join(str(error).split())[:160]
        raise DistributedError(
            f"another host has died ({line}); start all hosts again: the run resumes from its last "
            "checkpoint"
        ) from error


def is_main_process() -> bool:
    """Returns whether this is process 0, the only one that writes files."""
    return jax.process_index() == 0


def all_gather_object(value: object) -> list[Any]:
    """Returns the JSON values of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def to_host(tree: PyTree) -> PyTree:
    """Returns the arrays as numpy on every process, also if they are sharded over processes."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(tree, tiled=True)


def run_on_main_process(function: Callable[[], T]) -> T:
    """Calls `function` on process 0 and returns its JSON result on all processes.

    An IsoflopError of process 0 is raised on all processes.
    """
    if jax.process_count() == 1:
        return function()
    outcome: JsonObject = {}
    if is_main_process():
        try:
            outcome = {"value": function()}
        except IsoflopError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
    outcome = all_gather_object(outcome)[0]
    if "error" in outcome:
        raise getattr(errors, outcome["error"])(outcome["message"])
    return outcome["value"]


def check_hosts_agree(label: str, record: Mapping[str, object]) -> None:
    """Checks that `record` (JSON) is the same on all processes; `label` is its name in the error.

    Raises:
        DistributedError: if values differ, on every process.
    """
    rows = all_gather_object(record)
    problems = [
        f"{key} is {truncate_middle(a)} on host 0, {truncate_middle(b)} on host {host}"
        for host, row in enumerate(rows)
        for key, a, b in differences(rows[0], row)
        if not key.endswith(PER_HOST_SETTINGS)
    ]
    if problems:
        excess = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DistributedError(
            f"hosts disagree in {label}: {'; '.join(problems[:5])}{excess}; start all of them with "
            "the same command, code and data"
        )


class AnyAcrossHosts:
    """Combines flags over all processes with `any`, so that all processes act at the same step.

    The result is available one step later, so that no process waits for the device.
    """

    def __init__(self) -> None:
        self._num_processes = jax.process_count()
        if self._num_processes > 1:
            mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
            self._per_device_sharding = jax.sharding.NamedSharding(mesh, jax.P("all"))
            self._num_local_devices = jax.local_device_count()
            replicated = jax.sharding.NamedSharding(mesh, jax.P())
            self._max_over_devices = jax.jit(lambda x: x.max(axis=0), out_shardings=replicated)
        self._last_flags: jax.Array | None = None

    def reduce(self, *flags: bool) -> tuple[bool, ...]:
        """Returns for each flag whether any process set it one step ago; a single process: now."""
        if self._num_processes == 1:
            return flags
        last = None if self._last_flags is None else np.asarray(jax.device_get(self._last_flags))
        local_flags = np.tile(np.array(flags, np.int32), (self._num_local_devices, 1))
        with jax.transfer_guard("allow"):
            votes = jax.make_array_from_process_local_data(self._per_device_sharding, local_flags)
        self._last_flags = self._max_over_devices(votes)
        return tuple(map(bool, last)) if last is not None else (False,) * len(flags)


def _check_process_info(mode: DistributedMode, process_info: ProcessInfo) -> None:
    if not process_info.is_set:
        return
    if mode == "off":
        raise ConfigError("--distributed=off does not use --coordinator_address; omit one of them")
    if (
        not process_info.coordinator_address
        or process_info.process_id < 0
        or process_info.num_processes < 1
    ):
        raise ConfigError(
            f"--coordinator_address={process_info.coordinator_address} "
            f"--process_id={process_info.process_id} --num_processes={process_info.num_processes}: "
            "give all three, or none on a cluster that sets them"
        )
    if process_info.process_id >= process_info.num_processes:
        raise ConfigError(
            f"--process_id={process_info.process_id} must be below "
            f"--num_processes={process_info.num_processes}; the first is 0"
        )
    host, _, port = process_info.coordinator_address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"--coordinator_address={process_info.coordinator_address!r} is not HOST:PORT of "
            "process 0, whose port is between 1 and 65535"
        )
