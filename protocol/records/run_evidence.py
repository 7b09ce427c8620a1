"""What the files of a run say of its result: contradictions between them, and what is missing.

A forged result cannot always be recognized, but one that is edited in one file contradicts the
others. Every check here compares what two files of one run state.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data.round_trip import lossy_sentence
from errors import DataError
from protocol.records.comparability import read_decodes_back
from protocol.records.safe_read import CheckedFields, parse_object, sanitize
from protocol.records.scores import PART_NAME
from protocol.records.series import count_skipped_updates
from settings.run_json import is_run_sealed

TOLERANCE = 1e-6  # Relative difference within which two records of one number agree.
SHOWN_DIFFERENCES = 3  # Differences of one kind that are listed.
# Beginnings of environment variables that choose devices, threads, caches and messages alone.
HARMLESS_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_", "JAX_COMPILATION_CACHE", "JAX_PLATFORM"),
    *("JAX_LOG", "JAX_TRACEBACK", "JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
COUNTED_OBJECTIVES = ("causal_lm", "masked_lm")  # Their rows have train.seq_len tokens.


class RunEvidence(NamedTuple):
    """What supports the result of a run."""

    contradictions: tuple[str, ...] = ()  # Where the files of the run contradict each other.
    missing: str = ""  # What a finished run has not; blank if nothing is missing.
    checkpoint_hash: str = ""  # Hash of the files of the last checkpoint; blank: unknown.
    # Bytes of text by split, or by part of a split, as the evaluation counted.
    split_bytes: Mapping[str, float] = {}
    eval_seconds: float = 0.0  # Time of the evaluation at the last step.
    eval_tokens: float = 0.0  # Tokens of the evaluation at the last step.
    eval_training_flops: float = 0.0  # FLOPs that tasks spent on training, as on fine-tuning.
    packages: str = ""  # Versions of the packages that compute.
    # Share of the text of each held-out split that is in another split too.
    shared_text: Mapping[str, float] = {}
    # Environment variables that may change numbers, with their values.
    variables: Mapping[str, str] = {}
    skipped_updates: int = 0  # Updates that were not applied.
    lossy_tokenizer: str = ""  # What a lossy tokenizer means; blank if it is lossless.
    is_sealed: bool = False  # Whether its files have hashes.

    def with_contradictions(self, *contradictions: str) -> "RunEvidence":
        """Returns this evidence with further contradictions."""
        return self._replace(contradictions=(*self.contradictions, *contradictions))


def read_evidence(
    run: CheckedFields,
    settings: CheckedFields,
    metrics: list[CheckedFields],
    results: Sequence[CheckedFields],
    manifest: bytes | None,
    *,
    is_finished: bool,
) -> RunEvidence:
    """Returns what the files of a run support.

    Args:
        run: run.json.
        settings: its settings.
        metrics: rows of metrics.jsonl by increasing step.
        results: results of the tasks at the last step.
        manifest: MANIFEST.json of the last checkpoint.
        is_finished: whether the run has finished; others have no result to support.
    """
    steps = settings.section("train").count("steps") or 0
    checkpoint = parse_object(manifest, "MANIFEST.json") if manifest is not None else None
    contradictions = [*_score_problems(results), *_split_byte_problems(results)]
    if is_finished and steps:
        contradictions += _log_problems(settings, metrics, results, steps)
        contradictions += _manifest_problems(run, metrics, checkpoint, steps)
    is_logged = any(row.number("tokens") is not None for row in metrics)
    absent = [
        name
        for name, is_there in (("log", is_logged), ("manifest of its last checkpoint", checkpoint))
        if not is_there
    ]
    weights = [(row, row.text("name", 80)) for task in results for row in task.objects("scores")]
    return RunEvidence(
        contradictions=tuple(contradictions),
        missing=" and no ".join(absent) if is_finished and steps else "",
        checkpoint_hash=_hash_files(checkpoint),
        split_bytes=_split_weights(results, "bits_per_byte"),
        eval_seconds=sum(task.nonnegative("seconds") or 0.0 for task in results),
        eval_tokens=sum(
            row.number("weight") or 0.0 for row, name in weights if name.endswith("nats_per_token")
        ),
        eval_training_flops=sum(
            row.nonnegative("value") or 0.0 for row, name in weights if name.endswith("/flops")
        ),
        packages=_describe_packages(run),
        shared_text=_shared_text(run),
        variables=_numeric_variables(run),
        skipped_updates=count_skipped_updates(metrics),
        lossy_tokenizer=lossy_sentence(read_decodes_back(run)),
        is_sealed=is_run_sealed(run.tree),
    )


def _score_problems(results: Sequence[CheckedFields]) -> list[str]:
    """Returns where nats per token, tokens, bytes and bits per byte do not agree."""
    values: dict[str, tuple[float, float]] = {}
    for task in results:
        for row in task.objects("scores"):
            if row.is_text("value"):
                continue
            value, weight = row.number("value"), row.number("weight")
            if value is not None and weight is not None:
                values[row.text("name", 80)] = value, weight
    problems = []
    for name, (bits, n_bytes) in values.items():
        split, _, metric = name.rpartition("/")
        nats, n_tokens = values.get(f"{split}/nats_per_token", (math.nan, 0.0))
        if metric != "bits_per_byte" or not n_bytes or not math.isfinite(nats * bits):
            continue
        expected = nats * n_tokens / n_bytes / math.log(2)
        if not math.isclose(bits, expected, rel_tol=TOLERANCE):
            problems.append(
                f"its {name} is {bits:.6g}, but its nats per token, tokens and bytes give "
                f"{expected:.6g}"
            )
    return problems


def _split_byte_problems(results: Sequence[CheckedFields]) -> list[str]:
    """Returns where two tasks counted other bytes of one split."""
    counts: dict[str, set[float]] = {}
    for task in results:
        for split, count in _split_weights([task], "bits_per_byte").items():
            counts.setdefault(split, set()).add(count)
    return [f"its tasks count other bytes of {split}" for split, c in counts.items() if len(c) > 1]


def _split_weights(results: Sequence[CheckedFields], metric: str) -> dict[str, float]:
    """Returns the weight of a metric by split."""
    weights: dict[str, float] = {}
    for task in results:
        for row in task.objects("scores"):
            split, _, name = row.text("name", 80).rpartition("/")
            if name == metric and (weight := row.number("weight")):
                part = _part_label(task, split)
                weights[f"{split} ({part})" if part else split] = weight
    return weights


def _part_label(task: CheckedFields, split: str) -> str:
    """Returns the label of the part of a split that a task read; blank for the whole split."""
    name = f"{split}/{PART_NAME}"
    labels = [row.text("value") for row in task.objects("scores") if row.text("name", 80) == name]
    return labels[0] if labels else ""


def _log_problems(
    settings: CheckedFields,
    metrics: Sequence[CheckedFields],
    results: Sequence[CheckedFields],
    steps: int,
) -> list[str]:
    """Returns where the log of a finished run contradicts its settings or its scores."""
    problems = []
    trained = [row for row in metrics if row.number("tokens") is not None]
    last = trained[-1].count("step") if trained else steps
    if last != steps:
        problems.append(f"its log ends at step {last}, but it has {steps} steps")
    train = settings.section("train")
    shape = [train.nonnegative(key) or 0.0 for key in ("batch_size", "seq_len")]
    if trained and settings.text("objective") in COUNTED_OBJECTIVES and all(shape):
        expected = math.prod([steps, *shape])
        logged = trained[-1].number("tokens") or 0.0
        if not math.isclose(logged, expected, rel_tol=TOLERANCE):
            problems.append(
                f"its log counts {logged:,.0f} tokens, but steps x batch x length is "
                f"{expected:,.0f}"
            )
    final = metrics[-1] if metrics else None
    if final is None or final.count("step") != steps:
        return problems
    differences = []
    for task in results:
        for row in task.objects("scores"):
            name = row.text("name", 80)
            if row.is_text("value") or name not in final.tree or final.is_text(name):
                continue
            split = name.partition("/")[0]
            if final.text(f"{split}/{PART_NAME}") != _part_label(task, split):
                continue  # The run was evaluated again, on another part of the split.
            logged_score, score = final.number(name), row.number("value")
            if logged_score is None or score is None or math.isnan(logged_score - score):
                continue
            if not math.isclose(logged_score, score, rel_tol=TOLERANCE, abs_tol=1e-12):
                differences.append(f"its {name} is {score:.6g}, but its log has {logged_score:.6g}")
    return problems + differences[:SHOWN_DIFFERENCES]


def _manifest_problems(
    run: CheckedFields,
    metrics: Sequence[CheckedFields],
    manifest: CheckedFields | None,
    steps: int,
) -> list[str]:
    """Returns where the last checkpoint is not that of this run."""
    if manifest is None:
        return []
    problems = []
    if (owner := manifest.text("run_id")) != run.text("run_id"):
        problems.append(
            f"its last checkpoint is of the run {owner or 'without a name'}, not of "
            f"{run.text('run_id')}"
        )
    if manifest.count("step") not in (None, steps):
        problems.append(f"its last checkpoint is of step {manifest.count('step')}, not of {steps}")
    hashes = [h for row in metrics if (h := row.text("data_hash"))]
    saved = manifest.section("meta").text("data_hash")
    if hashes and saved and hashes[-1] != saved:
        problems.append("its log and its last checkpoint have other hashes of the training data")
    return problems


def _hash_files(manifest: CheckedFields | None) -> str:
    """Returns the hash of the content of a checkpoint; blank if the manifest lists no files.

    Raises:
        DataError: if an entry of a file has no hash.
    """
    files = manifest.tree.get("files") if manifest is not None else None
    if not isinstance(files, dict) or not files:
        return ""
    hashes: list[str] = []
    for entry in files.values():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise DataError("MANIFEST.json files must have a sha256 each")
        hashes.append(entry["sha256"])
    return hashlib.sha256(json.dumps(sorted(hashes)).encode()).hexdigest()


def _describe_packages(run: CheckedFields) -> str:
    """Returns the versions of the packages, and of Python where it is recorded."""
    packages = run.section("packages")
    names = [f"{name} {packages.text(name, 40)}" for name in sorted(packages.tree)]
    python = run.text("python", 40)
    return ", ".join([*names, *([f"python {python}"] if python else [])])


def _shared_text(run: CheckedFields) -> dict[str, float]:
    shares = run.section("data").section("shared_text")
    return {sanitize(s, 20): share for s in shares.tree if (share := shares.nonnegative(s))}


def _numeric_variables(run: CheckedFields) -> dict[str, str]:
    """Returns the environment variables of a run that may change its numbers."""
    variables = run.section("environment")
    return {
        sanitize(name, 80): variables.text(name)
        for name in variables.tree
        if not name.startswith(HARMLESS_VARIABLES)
    }
