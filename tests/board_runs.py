"""Synthetic run folders, as training writes them: for tests and the benchmark of the board."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA, TOKENIZER = "d" * 64, "7" * 64
FLOPS = 6.0e6  # Training FLOPs per token.
STUDY = {
    **{"axis": "training_flops", "value": FLOPS * 100 * 4 * 64},
    **{"tuning_trials": 5, "plan": "p" * 64},
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def settings(seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": seed,
        "model": {
            "width": 128,
            "depth": 5,
            "layers": ["attention+mlp"],
            "first_layers": [],
            "dtype": "float32",
            "mlp": {"width": 512, "gated": True},
        }
        | changes.get("model", {}),
        "objective": "causal_lm",
        "causal_lm": {"z_loss": 0.0},
        "data": {"source": "corpus", "tokenizer": "bytes", "cache": "~/.cache"},
        "train": {"steps": 100, "batch_size": 4, "seq_len": 64, "grad_accum_steps": 1}
        | changes.get("train", {}),
        "optimizer": {"name": "adamw", "learning_rate": 0.004} | changes.get("optimizer", {}),
        "debug": {"inject_fault": ""},
        "log": {"every": 10} | changes.get("log", {}),
    }


def run_json(name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    token = changes.get("flops", FLOPS)
    return {
        "format": 2,
        "run_id": hashlib.sha256(f"{name} {seed} {changes}".encode()).hexdigest()[:16],
        "command": ["train.py", f"--config=configs/{name}.py:tiny", f"--config.seed={seed}"],
        "flags": {"config": f"configs/{name}.py:tiny", "init_from": ""},
        "settings": settings(seed, changes),
        "fingerprints": {"data": DATA, "tokenizer": TOKENIZER},
        "cost": {
            "params": changes.get("params", 1_000_000),
            "active_params": min(changes.get("params", 1_000_000), 1_000_000),
            "non_embedding_params": changes.get("non_embedding_params", 900_000),
            "model_flops": token / 3,
            "executed_flops": token / 3,
            "training_flops": token,
            "terms": {"head.logits": {"model": token / 30, "executed": token / 30}},
            "state_bytes": changes.get("state_bytes", 327_680),
            **changes.get("cost", {}),
        },
        "code": {"commit": "c" * 40, "dirty": False, "diff_sha256": ""},
        "devices": {"kind": "cpu", "count": 1},
        **({"energy": changes["energy"]} if "energy" in changes else {}),
        "packages": {"jax": "0.10.2", "numpy": "2.3.0"},
        "study": {"candidate": name, **STUDY, **changes.get("study", {})},
        "data": {
            "decodes_back": changes.get("decodes_back", {}),
            "framing": changes.get("framing", {}),
        },
    }


def run(
    folder: Path,
    name: str = "dense",
    seed: int = 0,
    value: Any = 2.0,
    *,
    state: str = "finished",
    code: int = 0,
    rows: int = 10,
    scores: Sequence[tuple[str, Any]] = (),
    data: str = "",
    **changes: Any,
) -> Path:
    """Writes a run folder whose test bits per byte is `value`; `changes` go into run.json."""
    log = {"every": max(100 // max(rows, 1), 1)} | changes.get("log", {})
    record = run_json(name, seed, changes | {"log": log})
    train = record["settings"]["train"]
    steps, step_tokens = train["steps"], train["batch_size"] * train["seq_len"]
    write(folder / "run.json", record)
    write(folder / "status.json", {"state": state, "step": steps, "code": code, "message": ""})
    (folder / "events.jsonl").write_text('{"event": "start", "step": 0}\n')
    lines, rolling = [], ""
    for index in range(1, rows + 1):
        step = index * steps // rows
        rolling = hashlib.sha256(f"{rolling} {data} {seed} {index}".encode()).hexdigest()
        # No two seeds have the same losses.
        loss = (value if isinstance(value, float) else 2.0) + 4 / (1 + step / 8) + 1e-9 * seed
        row = {"step": step, "attempt": 1, "seconds": step / 10, "loss": loss, "nats": loss}
        row |= {"bits_per_byte": loss, "tokens": step * step_tokens, "unique_tokens": step * 200}
        row |= changes.get("row", {})
        row |= {"epochs": index / (10 * rows), "tokens_per_second": 2560.0, "step_seconds": 0.1}
        lines.append(json.dumps(row | {"data_hash": rolling}))
    (folder / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    all_scores = [("test/bits_per_byte", value), ("valid/bits_per_byte", value), *scores]
    write(
        folder / f"eval/{steps}/bits_per_byte.json",
        {
            **{"task": "bits_per_byte", "version": 1, "step": steps, "length": 64, "data": DATA},
            "scores": [{"name": n, "value": v, "weight": 1} for n, v in all_scores],
        },
    )
    write(folder / f"checkpoints/{steps}/MANIFEST.json", {"format": 1, "run_id": record["run_id"]})
    return folder


def candidate(root: Path, name: str, values: Sequence[Any], **changes: Any) -> None:
    """Writes a run folder for each value, with seeds from 0 on."""
    for seed, value in enumerate(values):
        run(root / f"{name}-{seed}", name, seed, value, **changes)
