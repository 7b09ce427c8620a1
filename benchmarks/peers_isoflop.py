"""The isoflop side of benchmarks/peers.py: trains one case, one step per line of its input."""

import importlib.metadata
import json
import math
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from objectives import DummyTokenizer
from settings.changes import with_changes
from training import accounting
from training import mesh as meshes
from training.loop import to_device
from training.program import TrainProgram, make_program
from training.settings import Settings, resolve

DEPTH, VOCAB, HEAD_DIM = 6, 8192, 64
PEAK_SIZE = 2048
LAYERS = {
    "dense": "attention+mlp",
    "moe": "attention+moe",
    "mamba2": "mamba2+none",
    "mamba1": "mamba1+none",
    "deltanet": "gated_deltanet+none",
}


def round_up(width: float) -> int:
    """Returns the next multiple of 32: torch multiplies experts of no other width."""
    return math.ceil(width / 32) * 32


def make_settings(case: dict) -> Settings:
    """Returns the settings of a case; its sizes are those of `peers_torch.py`."""
    changes = {
        "model.width": case["width"],
        "model.depth": DEPTH,
        "model.layers": (LAYERS[case["model"]],),
        "model.dtype": case["dtype"],
        "model.attention.heads": case["width"] // HEAD_DIM,
        "model.mlp.width": round_up(case["width"] * 8 / 3),
        "model.moe.num_experts": 8,
        "model.moe.top_k": 2,
        "model.moe.width": round_up(case["width"] * 4 / 3),
        "model.mamba2.state_size": 64,
        "model.mamba2.head_dim": HEAD_DIM,
        "model.gated_deltanet.heads": case["width"] // HEAD_DIM,
        "train.batch_size": case["batch_size"],
        "train.seq_len": case["seq_len"],
        "optimizer.schedule": "constant",
        "optimizer.learning_rate": 1e-3,
    }
    return resolve(with_changes(Settings(), changes), VOCAB)


def make_batch(program: TrainProgram, case: dict) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens."""
    rng, T = np.random.default_rng(0), case["seq_len"]
    make_row = program.objective.make_row_fn(program.settings.model, T, DummyTokenizer())
    texts = rng.integers(0, VOCAB, (case["batch_size"], T + 1)).astype(np.int32)
    rows = [make_row([text], T, rng) for text in texts]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    """Compiles the step, then answers each request with its figure."""
    jax.config.update("jax_platforms", "cpu")
    case = json.loads(sys.argv[1])
    settings = make_settings(case)
    program = make_program(settings, meshes.make_mesh(settings.mesh))
    step, batch = program.compile_train_step(), make_batch(program, case)
    x = jnp.ones((PEAK_SIZE, PEAK_SIZE), case["dtype"])
    multiply = jax.jit(jnp.matmul).lower(x, x).compile()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    flops = 3 * accounting.model_cost(settings).model_flops
    print(json.dumps({"versions": versions, "training_flops": flops}), flush=True)
    with jax.set_mesh(program.mesh):
        state, arrays = program.init(), to_device(program, 0, batch)
        for line in sys.stdin:
            start = time.perf_counter()
            if line.strip() == "step":
                state, metrics = step(state, arrays)
                jax.block_until_ready(metrics)
                value = time.perf_counter() - start
            else:
                times = []
                for _ in range(3):
                    start = time.perf_counter()
                    multiply(x, x).block_until_ready()
                    times.append(time.perf_counter() - start)
                value = 2 * PEAK_SIZE**3 / min(times)
            print(json.dumps({"value": value}), flush=True)


if __name__ == "__main__":
    main()
