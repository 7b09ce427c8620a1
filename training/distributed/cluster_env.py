"""Detects this process's role from the variables of Slurm's srun and Open MPI's mpirun.

JAX's own detection is right for TPU VMs and Kubernetes. For Slurm and Open MPI it gives every
process the device of its local number, even if the process has a whole host or has been bound to
another device, and waits for missing processes without naming them. The variables are facts about
the process and no settings; `--distributed` is the setting.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from errors import ConfigError
from settings.types import is_digits

SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
# Variables that name the devices that a process sees, on NVIDIA, AMD and Intel hardware.
VISIBLE_DEVICES_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
COORDINATOR_PORTS = range(61440, 65536)  # the job number selects one of them


class ProcessInfo(NamedTuple):
    """The rank of this process among all processes, and how it reaches them."""

    coordinator_address: str = ""  # host:port of process 0
    process_id: int = -1
    num_processes: int = 0
    # Devices of the host that this process uses; None: all visible devices.
    local_device_ids: tuple[int, ...] | None = None

    @property
    def is_set(self) -> bool:
        """Whether any of the fields was specified."""
        return bool(self.coordinator_address) or self.process_id >= 0 or self.num_processes > 0


def detect_process(variables: Mapping[str, str] = os.environ) -> ProcessInfo:
    """Returns the role of this process by the launcher's variables, empty without a launcher."""
    if all(name in variables for name in SLURM_VARIABLES):
        return _slurm(variables)
    if "OMPI_MCA_orte_hnp_uri" in variables:
        return _open_mpi(variables)
    return ProcessInfo()


def incomplete_env_error(variables: Mapping[str, str] = os.environ) -> str:
    """Explains which variables of a cluster are missing; "" if all are set or none.

    A batch script or a shell on a Slurm node has the variables of the job but not those of a step.
    It would train on one process, although the user requested several tasks.
    """
    num_tasks = variables.get("SLURM_NTASKS", "1")
    missing = [name for name in SLURM_VARIABLES if name not in variables]
    if "SLURM_JOB_ID" in variables and missing and num_tasks != "1":
        return (
            f"SLURM_NTASKS is {num_tasks}, but {', '.join(missing)} is not set: this process is "
            "not a step of the job; start it with srun"
        )
    size = variables.get("OMPI_COMM_WORLD_SIZE", "1")
    if size != "1" and "OMPI_MCA_orte_hnp_uri" not in variables:
        return (
            f"OMPI_COMM_WORLD_SIZE is {size}, but OMPI_MCA_orte_hnp_uri is not set (Open MPI 5 "
            "never sets it); give --coordinator_address, --process_id and --num_processes"
        )
    return ""


def _slurm(variables: Mapping[str, str]) -> ProcessInfo:
    """Reads Slurm's variables; process 0 runs on the first node of the step."""
    tasks = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables.get("SLURM_TASKS_PER_NODE")
    local_id = _read_int(variables, "SLURM_LOCALID")
    num_local = _tasks_on_node(tasks or "1", variables.get("SLURM_NODEID", ""), local_id)
    per_task = variables.get("SLURM_TRES_PER_TASK", "") + variables.get("SLURM_GPU_BIND", "none")
    # Slurm has then bound devices to the task, and this process sees no others.
    is_bound = "SLURM_GPUS_PER_TASK" in variables or re.search("gpu|single|per_task", per_task)
    job = _read_int(variables, "SLURM_JOB_ID")
    return ProcessInfo(
        f"{first_node(variables['SLURM_STEP_NODELIST'])}:{_coordinator_port(job)}",
        _read_int(variables, "SLURM_PROCID"),
        _read_int(variables, "SLURM_NTASKS"),
        None if is_bound else _own_devices(variables, local_id, num_local),
    )


def first_node(nodes: str) -> str:
    """Returns the first host of a node list such as `rack[0-1]n[00-10],gpu[7,9]-ib`.

    Raises:
        ConfigError: if the list has no host.
    """
    first = re.match(r"((?:[^,\[\]]|\[[^\]]*\])+)(?:,|$)", nodes.strip())
    host = re.sub(r"\[\s*([^\],-]*)[^\]]*\]", r"\1", first[1]).strip() if first else ""
    if not re.fullmatch(r"[\w.:-]+", host):
        raise ConfigError(
            f"SLURM_STEP_NODELIST is {nodes!r}, which names no first host; give "
            "--coordinator_address, --process_id and --num_processes"
        )
    return host


def _tasks_on_node(tasks: str, node_id: str, local_id: int) -> int:
    """Returns how many tasks run on this node, of which Slurm lists all: `2(x3),1`.

    Without the number of the node, it is the largest node.
    """
    counts = [
        int(count)
        for count, times in re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", tasks)
        for _ in range(int(times or 1))
    ]
    number = int(node_id) if is_digits(node_id) else len(counts)
    return max(counts[number] if number < len(counts) else max(counts, default=1), local_id + 1)


def _own_devices(
    variables: Mapping[str, str], local_id: int, num_local: int
) -> tuple[int, ...] | None:
    """Returns the devices that are this process's among those it sees; None: all of them.

    Processes that share a host share its devices evenly. A process that sees fewer devices than
    there are processes, or fewer than the host has, has been bound to its own.
    """
    if num_local == 1:
        return None
    visible = next((variables[n] for n in VISIBLE_DEVICES_VARIABLES if n in variables), None)
    on_node = variables.get("SLURM_GPUS_ON_NODE", "")
    if visible is None:
        count = int(on_node) if is_digits(on_node) else num_local
    else:
        count = len([device for device in visible.split(",") if device.strip()])
        if is_digits(on_node) and count < int(on_node):
            return None
    share = count // num_local
    return tuple(range(local_id * share, (local_id + 1) * share)) or None


def _open_mpi(variables: Mapping[str, str]) -> ProcessInfo:
    """Reads Open MPI's variables.

    The launcher runs on the host of process 0 and has a URI such as
    `1531576320.0;tcp://10.96.0.1,10.148.0.1:34911`.
    """
    uri = variables["OMPI_MCA_orte_hnp_uri"]
    match = re.match(r"([0-9]+)\.[0-9]+;tcp6?://(?:\[([^\],]+)|([^,:\[]+))", uri)
    if not match:
        return ProcessInfo()
    job, ipv6, ipv4 = match.groups()
    num_local = variables.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    process_id, num_processes, local_rank = (_read_int(variables, name) for name in names)
    port = _coordinator_port(int(job) >> 12)  # the low bits of the job number are always 0
    return ProcessInfo(
        f"{f'[{ipv6}]' if ipv6 else ipv4}:{port}",
        process_id,
        num_processes,
        _own_devices(variables, local_rank, int(num_local) if is_digits(num_local) else 1),
    )


def _read_int(variables: Mapping[str, str], name: str) -> int:
    value = variables.get(name, "")
    if not is_digits(value):
        raise ConfigError(
            f"{name} is {value!r}, not a number: the launcher's variables are incomplete; give "
            "--coordinator_address, --process_id and --num_processes"
        )
    return int(value)


def _coordinator_port(job: int) -> int:
    return COORDINATOR_PORTS[job % len(COORDINATOR_PORTS)]
