"""The model card of what is exported: data, budget, seed, and what was measured."""

from pathlib import Path
from typing import Any

from training.files import read_json


def text(record: dict[str, Any], run: Path, step: int, architecture: str) -> str:
    """README.md, from run.json and the scores in eval/."""
    settings = record["settings"]
    train, data = settings["train"], settings["data"]
    tokens = step * train["batch"] * train["length"]
    cost = record.get("cost", {})
    prints = record.get("fingerprints", {})
    lines = [
        "---",
        "library_name: transformers",
        "---",
        "",
        f"# {run.name}",
        "",
        f"A {architecture} of {cost.get('params', 'an unknown number of')} parameters, trained by "
        f"isoflop under the objective {settings['objective']}.",
        "",
        "| | |",
        "|---|---|",
        f"| data | {data['source']} {data['path']} (sha256 {prints.get('data', 'unknown')}) |",
        f"| tokenizer | {data['tokenizer']} (sha256 {prints.get('tokenizer', 'unknown')}) |",
        f"| budget | {step} steps of {train['batch']} rows of {train['length']} tokens: {tokens} |",
        f"| seed | {settings['seed']} |",
        f"| code | {_code(record)} |",
        "",
        "One run under one seed: a difference to another run may be chance.",
        "",
    ]
    rows = _scores(run, step)
    if rows:
        lines += ["| score | value |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _code(record: dict[str, Any]) -> str:
    code = record.get("code", {})
    return ", ".join(f"{k} {v}" for k, v in code.items()) if isinstance(code, dict) else str(code)


def _scores(run: Path, step: int) -> list[str]:
    found = []
    for path in sorted((run / "eval" / str(step)).glob("*.json")):
        result = read_json(path) or {}
        found += [
            f"| {path.stem}: {score['name']} | {score['value']:.4f} |"
            for score in result.get("scores", ())
            if isinstance(score["value"], float)
        ]
    return found
