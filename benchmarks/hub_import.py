"""Measures the memory that importing a checkpoint takes in addition to the model.

    uv run benchmarks/hub_import.py [--gib=1] [--shards=1] [--dtype=float32]

Writes a LLaMA of the given size and reads it with `hub.load` in another process. Prints the peak of
the resident memory minus the memory before the import and the size of the parameters. The goal is
1.3 GB for a checkpoint of 1 GB. The result was 0.39 GB, and 0.31 GB for 0.5 GB in bfloat16 that
become 1 GB.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

import hub
from arch import Model, ModelConfig
from arch.channels.mlp import MlpConfig
from arch.mixers.attention import AttentionConfig

WIDTH, HEADS, MLP_WIDTH, VOCAB = 1024, 16, 4096, 32000
LAYER_PARAMS = 4 * WIDTH**2 + 3 * WIDTH * MLP_WIDTH  # parameters of one layer


def make_config(n_params: float) -> ModelConfig:
    """Returns a LLaMA with about `n_params` parameters, including a tied embedding."""
    depth = max(1, round((n_params - VOCAB * WIDTH) / LAYER_PARAMS))
    attention, mlp = AttentionConfig(heads=HEADS), MlpConfig(width=MLP_WIDTH)
    return ModelConfig(
        width=WIDTH, depth=depth, vocab_size=VOCAB, vocab_multiple=1, attention=attention, mlp=mlp
    )


def write_checkpoint(folder: Path, gib: float, shards: int, dtype: str) -> None:
    """Writes a random model of about `gib` GiB as a checkpoint."""
    config = make_config(gib * 2**30 / (4 if dtype == "float32" else 2))
    model = Model(config, key=jax.random.key(0))
    hub.save(model, config, folder, dtype=dtype, max_shard_bytes=int(gib * 2**30 / shards) + 2**20)


def peak_memory_gb() -> float:
    """Returns the peak memory of this process in GB.

    getrusage is not used, because a child process inherits the peak of its parent there.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def measure_load(folder: Path) -> None:
    """Loads a checkpoint and prints its size and the additional peak of memory."""
    jax.block_until_ready(jax.numpy.zeros(()))  # allocates the memory of the backend
    before = peak_memory_gb()
    model, _, _ = hub.load(folder)
    params_gb = sum(leaf.nbytes for leaf in jax.tree.leaves(model)) / 1e9
    files_gb = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    extra_gb = peak_memory_gb() - before - params_gb
    print(
        f"checkpoint {files_gb:.2f} GB, parameters {params_gb:.2f} GB, "
        f"additional peak {extra_gb:.2f} GB"
    )


def main() -> None:
    """Runs the benchmark of imports and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0, help="size of the checkpoint in GiB")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--read", type=Path, help="measure this folder instead of writing one")
    args = parser.parse_args()
    if args.read:
        return measure_load(args.read)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.gib, args.shards, args.dtype)
        subprocess.run([sys.executable, __file__, f"--read={folder}"], check=True)


if __name__ == "__main__":
    main()
