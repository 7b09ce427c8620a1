"""The comparability keys of a run: rows that differ in one are not ranked together.

They follow item 14 of docs/protocol.md.
"""

from collections.abc import Mapping

from data.round_trip import lossy_sentence
from protocol.board.columns import AXIS_COLUMN_ALIASES, TIME_COLUMNS
from protocol.records.safe_read import CheckedFields, flatten, sanitize
from protocol.records.study_record import StudyRecord

COMPARABILITY_KEYS = (
    *("objective", "data", "tokenizer", "seq_len", "batch_size", "precision", "optimizer"),
    *("init_from", "metric", "evaluation", "tuning_trials"),
    "hardware",  # Blank unless the matched axis is time.
)
KEY_LABELS = {"seq_len": "row length", "init_from": "initialization"}
NOT_STATED = "not stated"  # Value of a key that an external result does not state.
FROM_SCRATCH = (
    "scratch"  # Value of the key "init_from" of a run that starts from random parameters.
)
NO_EVALUATION = "none"  # Value of the key "evaluation" of a run without a score.
COMPILER_PACKAGES = ("jax", "libtpu", "tokamax")  # Prefixes of package names.


def comparability_keys(
    run: CheckedFields,
    settings: CheckedFields,
    objective: str,
    metric: str,
    evaluations: Mapping[str, str],
    study: StudyRecord,
) -> dict[str, str]:
    """Returns the text of each of `COMPARABILITY_KEYS`.

    Args:
        run: run.json.
        settings: its settings.
        objective: the name of the objective.
        metric: the metric by which the run is ranked.
        evaluations: what produced each score, by score name (`scores.read_scores`).
        study: what the study of the run declares.
    """
    is_timed = AXIS_COLUMN_ALIASES.get(study.axis) in TIME_COLUMNS
    data, fingerprints = settings.section("data"), run.section("fingerprints")
    train = settings.section("train")
    trials = "not declared" if study.tuning_trials is None else str(study.tuning_trials)
    if study.tuned_settings:
        trials += f" of {', '.join(study.tuned_settings)}"
    batch_size, optimizer = (
        "tuned" if key in study.tuned_settings else text
        for key, text in (
            ("train.batch_size", f"{train.count('batch_size')} sequences"),
            ("optimizer.name", settings.section("optimizer").text("name", 40)),
        )
    )
    return {
        "objective": " ".join(
            [objective, *_objective_settings(settings, objective, study.varied_settings)]
        ),
        "data": f"{data.text('source')} {fingerprints.text('data')}",
        "tokenizer": f"{data.text('tokenizer')} {fingerprints.text('tokenizer')}{_loss(run)}"
        + _frame(run),
        "seq_len": f"{train.count('seq_len')} tokens",
        "batch_size": batch_size,
        "precision": settings.section("model").text("dtype", 20),
        "optimizer": optimizer,
        "init_from": _start(run, study),
        "metric": metric or "none",
        "evaluation": evaluations.get(metric, NO_EVALUATION),
        "tuning_trials": trials,
        "hardware": describe_platform(run) if is_timed else "",
    }


def key_label(key: str) -> str:
    """Returns the label of a comparability key."""
    return KEY_LABELS.get(key, key.replace("_", " "))


def describe_platform(run: CheckedFields) -> str:
    """Returns devices and compiler versions, because seconds compare only where they agree."""
    devices, packages = run.section("devices"), run.section("packages")
    names = sorted(name for name in packages.tree if name.startswith(COMPILER_PACKAGES))
    parts = [f"{name} {packages.text(name, 40)}" for name in names]
    if devices.tree:
        parts.insert(0, f"{devices.count('count')} x {devices.text('kind', 60)}")
    return sanitize(", ".join(parts))


def read_decodes_back(run: CheckedFields) -> dict[str, float]:
    """Returns the share of the bytes of each split that the tokenizer of a run gives back."""
    shares = run.section("data").section("decodes_back")
    values = {split: shares.nonnegative(split) for split in shares.tree}
    return {split: value for split, value in values.items() if value is not None}


def _start(run: CheckedFields, study: StudyRecord) -> str:
    """Returns what a run starts from: another run, the earlier stages of its study, or nothing.

    Another run has the hash of its parameters, as far as run.json records it.
    """
    if study.earlier_stages:
        return f"the stages {', '.join(study.earlier_stages)} of its study"
    flags = run.section("flags")
    texts = flags.text("init_from"), flags.text("init_from_sha256", 64)
    return " ".join(filter(None, texts)) or FROM_SCRATCH


def _loss(run: CheckedFields) -> str:
    """Returns " (lossy)" if bits per byte are not those of the text."""
    return " (lossy)" if lossy_sentence(read_decodes_back(run)) else ""


def _frame(run: CheckedFields) -> str:
    """Returns what precedes a context, if it is not what precedes a document in training."""
    framing = run.section("data").section("framing")
    before = framing.text("text_prefix")
    same = before == framing.text("document_prefix")
    return "" if same else f" (before a context: {before})"


def _objective_settings(
    settings: CheckedFields, objective: str, varied_settings: tuple[str, ...] = ()
) -> list[str]:
    """Returns the settings of an objective as "key=value", without those that the study varies.

    A mixture has the settings of its parts too. Contrastive learning has the dropout of the model
    too, because dropout makes its views differ.
    """
    flat = flatten(settings.section(objective).tree)
    prefixes = tuple(f"{name}." for name in varied_settings)
    fixed = {k: v for k, v in flat.items() if not f"{objective}.{k}.".startswith(prefixes)}
    texts = [f"{key}={value}" for key, value in fixed.items()]
    texts += [f"varies={name}" for name in varied_settings if name.startswith(f"{objective}.")]
    if objective == "contrastive":
        model = settings.section("model")
        rates = (model.section(name).nonnegative("dropout") or 0 for name in ("embed", "block"))
        texts.append("dropout=" + ",".join(f"{rate:g}" for rate in rates))
    if objective == "mixture":
        parts = settings.section("mixture").tree.get("parts")
        parts = parts if isinstance(parts, list) else []
        names = [part[0] for part in parts if isinstance(part, list) and part]
        for name in (n for n in names if isinstance(n, str) and n != "mixture"):
            texts += [
                f"{name}.{text}" for text in _objective_settings(settings, name, varied_settings)
            ]
    return texts
