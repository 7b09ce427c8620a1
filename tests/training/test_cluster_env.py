"""Launchers: which devices are a process's own, and the first host of a node list."""

import subprocess
import sys
from pathlib import Path

import pytest

from errors import ConfigError
from training.distributed import cluster_env

ROOT = Path(__file__).parents[2]
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        # Bound to one device each, by whatever means: the process sees nothing else.
        ({"CUDA_VISIBLE_DEVICES": "3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "MIG-2f6c"}, None),
        ({"ROCR_VISIBLE_DEVICES": "2"}, None),
        ({"ZE_AFFINITY_MASK": "1"}, None),
        ({"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
        ({"SLURM_TRES_PER_TASK": "gres/gpu:2"}, None),
        ({"SLURM_GPU_BIND": "per_task:1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_GPUS_ON_NODE": "16"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        # Not bound: the processes of a host share what all of them see.
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, (1,)),
        ({"SLURM_GPUS_ON_NODE": "8"}, (2, 3)),
        ({"SLURM_TRES_PER_TASK": "cpu=4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,)),
        (
            {
                **{"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"},
                "CUDA_VISIBLE_DEVICES": "0,1",
            },
            None,
        ),
        ({"SLURM_STEP_TASKS_PER_NODE": "6,2", "SLURM_NODEID": "1"}, (1,)),
        (
            {
                **{"SLURM_STEP_TASKS_PER_NODE": "4,2(x2)", "SLURM_NODEID": "2"},
                "CUDA_VISIBLE_DEVICES": "0,1,2,3",
            },
            (2, 3),
        ),
    ],
)
def test_a_slurm_task_takes_its_own_devices(variables, devices):
    assert cluster_env.detect_process(STEP | variables).local_device_ids == devices


def test_a_process_of_open_mpi_takes_its_own_devices():
    for visible, devices in [("2", None), ("0,1,2,3", (1,)), ("0,1,2,3,4,5,6,7", (2, 3))]:
        found = cluster_env.detect_process(OPEN_MPI | {"CUDA_VISIBLE_DEVICES": visible})
        assert found.local_device_ids == devices


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("linux[1,2]", "linux1"),
        ("a,b,c", "a"),
        ("nodeA,nodeB[001,003]", "nodeA"),
        ("ml-16-node-[001-002,004]", "ml-16-node-001"),
        ("rack[0-1]n[00-10]", "rack0n00"),
        ("tux[0-3]-gpu", "tux0-gpu"),
        ("[2-3]x", "2x"),
        ("c[1-4]s[1,3]-ib.cluster.example,d1", "c1s1-ib.cluster.example"),
        ("n[0-14/2]", "n0"),
        ("10.0.0.[5-6]", "10.0.0.5"),
    ],
)
def test_process_0_is_on_the_first_host_of_a_list(nodes, host):
    assert cluster_env.first_node(nodes) == host


@pytest.mark.parametrize("nodes", ["", ",", "a b", "n[1-2"])
def test_a_list_without_a_host_is_refused(nodes):
    with pytest.raises(ConfigError, match="SLURM_STEP_NODELIST"):
        cluster_env.first_node(nodes)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train", "leaderboard", "data", "eval.__main__"])
def test_a_system_without_posix_locks_is_named_in_one_line(module):
    code = f"import sys; sys.modules['fcntl'] = None; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "isoflop runs on Linux and macOS; on Windows, run it in WSL 2\n"
