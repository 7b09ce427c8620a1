"""The models of benchmarks/accelerator.py, and the settings with which one fits a device."""

from typing import Any

from settings.changes import with_changes
from training.preflight import memory_estimate
from training.program import TrainProgram, make_program
from training.settings import Settings, resolve

VOCAB = 32768
# The 1B models have about equally many parameters, 0.97 to 1.10 billion.
HYBRID = (*("gated_deltanet+mlp",) * 3, "attention+mlp")
MODELS = {  # width, depth, layers, largest batch
    "dense 150M": (768, 16, ("attention+mlp",), 32),
    "dense 1B": (2048, 20, ("attention+mlp",), 16),
    "MoE 8 x 150M, top-2": (768, 16, ("attention+moe",), 32),
    "Mamba-2 1B": (2048, 40, ("mamba2+none",), 16),
    "gated DeltaNet 1B": (2048, 17, ("gated_deltanet+mlp",), 16),
    "hybrid 1B, 3:1": (2048, 16, HYBRID, 16),
}
MEMORY_SHARE = 0.95  # of a device's memory that the estimate may fill
MIN_ROWS = 4  # with fewer rows in a batch, remat is faster than its FLOPs suggest


def model_settings(
    width: int, depth: int, layers: tuple[str, ...], length: int, scale: int = 1, vocab: int = VOCAB
) -> Settings:
    """Returns the settings of a model; `scale` divides its width, its depth and the vocabulary."""
    width = max(width // scale, 64)
    depth = max(depth // scale, len(layers))
    changes = {
        "model.width": width,
        "model.depth": depth,
        "model.layers": layers,
        "model.dtype": "bfloat16",
        "model.attention.heads": max(width // 128, 2),
        "model.mlp.width": 8 * width // 3 // 64 * 64,
        "model.moe.num_experts": 8,
        "model.moe.top_k": 2,
        "model.moe.width": 8 * width // 3 // 64 * 64,
        "model.mamba2.head_dim": 64,
        "model.gated_deltanet.heads": max(width // 256, 2),
        "train.seq_len": length,
        "train.steps": 1000,
    }
    return resolve(with_changes(Settings(), changes), max(vocab // scale, 512))


def fit_to_memory(program: TrainProgram, memory_bytes: int | None) -> TrainProgram:
    """Returns the program with a batch, a remat policy and an optimizer that fit by the estimate.

    The batch of `program` is the largest one. Remat is used where fewer than MIN_ROWS rows fit
    without it, and Lion, which keeps one moment, where not one row fits beside AdamW's two. Where
    nothing fits, the last of these is returned.

    Args:
        program: the program on the device.
        memory_bytes: memory of the device; None: no limit is known.
    """
    if memory_bytes is None:
        return program
    smallest, limit = program, MEMORY_SHARE * memory_bytes
    for optimizer in ("adamw", "lion"):
        largest = None
        for remat in ("none", "dots", "full"):
            changes = {"optimizer.name": optimizer, "model.remat": remat}
            smallest = _with_changes(program, changes | {"train.batch_size": 1})
            if not _fits(smallest, limit):
                continue
            candidate = _with_changes(program, changes)
            while _rows(candidate) > 1 and not _fits(candidate, limit):
                candidate = _with_changes(candidate, {"train.batch_size": _rows(candidate) // 2})
            if largest is None or _rows(candidate) > _rows(largest):
                largest = candidate
            if _rows(largest) >= min(MIN_ROWS, _rows(program)):
                break
        if largest:
            return largest
    return smallest


def _with_changes(program: TrainProgram, changes: dict[str, Any]) -> TrainProgram:
    return make_program(with_changes(program.settings, changes), program.mesh)


def _fits(program: TrainProgram, limit: float) -> bool:
    return sum(memory_estimate.estimate(program).values()) <= limit


def _rows(program: TrainProgram) -> int:
    return program.settings.train.batch_size
