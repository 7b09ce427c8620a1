"""Where a cluster's launcher put this process: Slurm's srun and Open MPI's mpirun, by variables.

JAX's own detection is right for TPU VMs and Kubernetes. For these two it gives every process one
device, also where one process has a whole host, and waits for the others without saying for whom.
The variables are facts about the process, not settings; `--distributed` is the setting.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from errors import ConfigError

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
PORTS = range(61440, 65536)  # of coordinators: a job's number chooses one


class Place(NamedTuple):
    """Where this process stands among others."""

    coordinator: str = ""  # host:port of process 0
    process: int = -1
    processes: int = 0
    devices: tuple[int, ...] | None = None  # of this host, for this process; None: all it can see

    @property
    def given(self) -> bool:
        return bool(self.coordinator) or self.process >= 0 or self.processes > 0


def place(variables: Mapping[str, str] = os.environ) -> Place:
    """This process's place by the launcher's variables; not `given` if none of the two is here."""
    if all(name in variables for name in SLURM):
        return _slurm(variables)
    if "OMPI_MCA_orte_hnp_uri" in variables:
        return _open_mpi(variables)
    return Place()


def broken(variables: Mapping[str, str] = os.environ) -> str:
    """Why a cluster seems to be here and cannot be joined; "" if none is, or it can.

    A batch script or a shell on a Slurm node has the job's variables but not a step's: it would
    train on one process, which nobody who asked for several tasks means.
    """
    tasks = variables.get("SLURM_NTASKS", "1")
    absent = [name for name in SLURM if name not in variables]
    if "SLURM_JOB_ID" in variables and absent and tasks != "1":
        return (
            f"SLURM_NTASKS is {tasks}, but {', '.join(absent)} is not set: this is no step of the "
            "job; start it by srun"
        )
    size = variables.get("OMPI_COMM_WORLD_SIZE", "1")
    if size != "1" and "OMPI_MCA_orte_hnp_uri" not in variables:
        return (
            f"OMPI_COMM_WORLD_SIZE is {size}, but OMPI_MCA_orte_hnp_uri is not set (Open MPI 5 has "
            "no such); give --coordinator, --process_id and --processes"
        )
    return ""


def _slurm(variables: Mapping[str, str]) -> Place:
    """`node[001-003,7],gpu5` and the like name the nodes; process 0 is on the first of them."""
    nodes = variables["SLURM_STEP_NODELIST"]
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    host = "".join(filter(None, found.groups())) if found else nodes
    # Tasks by node, "2(x3),1": one of one task each, if nothing else is there.
    beside = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables.get("SLURM_TASKS_PER_NODE")
    alone = re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", beside or "1") is not None
    bound = any(name in variables for name in ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"))
    return Place(
        f"{host}:{_port(_number(variables, 'SLURM_JOB_ID'))}",
        _number(variables, "SLURM_PROCID"),
        _number(variables, "SLURM_NTASKS"),
        None if alone or bound else (_number(variables, "SLURM_LOCALID"),),
    )


def _open_mpi(variables: Mapping[str, str]) -> Place:
    """`1531576320.0;tcp://10.96.0.1,10.148.0.1:34911` is the launcher, beside process 0."""
    uri = variables["OMPI_MCA_orte_hnp_uri"]
    found = re.match(r"(\d+)\.\d+;tcp6?://(?:\[([^\],]+)|([^,:\[]+))", uri)
    if not found:
        return Place()
    job, wide, narrow = found.groups()
    alone = variables.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1"
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    process, processes, local = (_number(variables, name) for name in names)
    return Place(
        f"{f'[{wide}]' if wide else narrow}:{_port(int(job) >> 12)}",  # the low bits are always 0
        process,
        processes,
        None if alone else (local,),
    )


def _number(variables: Mapping[str, str], name: str) -> int:
    value = variables.get(name, "")
    if not value.isdigit():
        raise ConfigError(
            f"{name} is {value!r}, not a number: the launcher's variables are incomplete; give "
            "--coordinator, --process_id and --processes"
        )
    return int(value)


def _port(job: int) -> int:
    return PORTS[job % len(PORTS)]
