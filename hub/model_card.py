"""Writes the model card of an exported run: data, budget, seed and scores."""

from pathlib import Path

from settings.json_types import JsonObject
from training.run.atomic_io import read_json


def format_card(record: JsonObject, run_folder: Path, step: int, architecture: str) -> str:
    """Returns the text of README.md, from run.json and the scores in eval/."""
    settings = record["settings"]
    data = settings["data"]
    batch_size, seq_len = settings["train"]["batch_size"], settings["train"]["seq_len"]
    tokens = step * batch_size * seq_len
    cost = record.get("cost", {})
    fingerprints = record.get("fingerprints", {})
    data_hash = fingerprints.get("data", "unknown")
    tokenizer_hash = fingerprints.get("tokenizer", "unknown")
    lines = [
        "---",
        "library_name: transformers",
        "---",
        "",
        f"# {run_folder.name}",
        "",
        f"A {architecture} of {cost.get('params', 'an unknown number of')} parameters, trained by "
        f"isoflop under the objective {settings['objective']}.",
        "",
        "| | |",
        "|---|---|",
        f"| data | {data['source']} {_public_name(data['path'])} (sha256 {data_hash}) |",
        f"| tokenizer | {_public_name(data['tokenizer'])} (sha256 {tokenizer_hash}) |",
        f"| budget | {step} steps of {batch_size} rows of {seq_len} tokens: {tokens} |",
        f"| seed | {settings['seed']} |",
        f"| code | {_format_code(record)} |",
        "",
        "This is one run with one seed: a difference to another run may be chance.",
        "",
    ]
    rows = _format_scores(run_folder, step)
    if rows:
        lines += ["| score | value |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _public_name(path: str) -> str:
    """Returns a name of the hub as it is, and of a path on this machine its last part alone."""
    is_local = path.startswith(("/", "~", ".")) or Path(path).exists() or path.count("/") > 1
    return Path(path).name if is_local else path


def _format_code(record: JsonObject) -> str:
    code = record.get("code", {})
    return ", ".join(f"{k} {v}" for k, v in code.items()) if isinstance(code, dict) else str(code)


def _format_scores(run_folder: Path, step: int) -> list[str]:
    rows = []
    for path in sorted((run_folder / "eval" / str(step)).glob("*.json")):
        scores = (read_json(path) or {}).get("scores")
        rows += [
            f"| {path.stem}: {score.get('name')} | {score['value']:.4f} |"
            for score in (scores if isinstance(scores, list) else ())
            if isinstance(score, dict) and isinstance(score.get("value"), float)
        ]
    return rows
