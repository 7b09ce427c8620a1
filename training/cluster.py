"""Which cluster started this process, as far as JAX's own detection would get it wrong.

These variables are facts about the process, not settings; `--distributed` is the setting.
"""

import os
from collections.abc import Mapping

SLURM = (*("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),)


def broken(variables: Mapping[str, str] = os.environ) -> str:
    """Why a cluster seems to be here and cannot be joined; "" if none is, or it can.

    A batch script or a shell on a Slurm node has the job's variables but not a step's: JAX would
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
