"""Memory that importing a checkpoint takes beyond the model itself.

    uv run benchmarks/hub_import.py [--gib=1] [--shards=1] [--dtype=float32]

Writes a LLaMA of that size, reads it with `hub.load` in another process, and prints by how much
its resident memory was at most above what it had before and the parameters take. The goal is 1.3 GB
for a checkpoint of 1 GB; 0.39 were seen, and 0.31 of 0.5 GB in bfloat16 that become 1 GB.
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
from arch.attention import AttentionConfig
from arch.mlp import MlpConfig

WIDTH, HEADS, WIDE, VOCAB = 1024, 16, 4096, 32000
LAYER = 4 * WIDTH**2 + 3 * WIDTH * WIDE  # parameters


def config(size: float) -> ModelConfig:
    """About `size` parameters, a tied table among them."""
    depth = max(1, round((size - VOCAB * WIDTH) / LAYER))
    attention, mlp = AttentionConfig(heads=HEADS), MlpConfig(width=WIDE)
    return ModelConfig(
        width=WIDTH, depth=depth, vocab=VOCAB, vocab_multiple=1, attention=attention, mlp=mlp
    )


def write(folder: Path, gib: float, shards: int, dtype: str) -> None:
    wanted = config(gib * 2**30 / (4 if dtype == "float32" else 2))
    model = Model(wanted, key=jax.random.key(0))
    hub.save(model, wanted, folder, dtype=dtype, limit=int(gib * 2**30 / shards) + 2**20)


def peak() -> float:
    """Most memory that this program had, in GB; of getrusage a child inherits its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def read(folder: Path) -> None:
    jax.block_until_ready(jax.numpy.zeros(()))  # the backend's own memory
    before = peak()
    model, _, _ = hub.load(folder)
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(model)) / 1e9
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    over = peak() - before - own
    print(f"checkpoint {files:.2f} GB, parameters {own:.2f} GB, peak above them {over:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0, help="of the checkpoint")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--read", type=Path, help="measure this folder, and write none")
    args = parser.parse_args()
    if args.read:
        return read(args.read)
    with tempfile.TemporaryDirectory() as there:
        write(Path(there), args.gib, args.shards, args.dtype)
        subprocess.run([sys.executable, __file__, f"--read={there}"], check=True)


if __name__ == "__main__":
    main()
