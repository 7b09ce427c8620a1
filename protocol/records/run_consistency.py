"""Checks inside one run: numbers and histories that no run of this project can have.

`run_evidence.py` compares what files say of the score; these checks compare costs, steps, attempts
and evaluations with what they follow from.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from protocol.records.safe_read import CheckedFields

TOLERANCE = 1e-6  # Relative difference within which two records of one number agree.
FIXED_LENGTH_OBJECTIVES = ("causal_lm", "masked_lm")  # Their rows have train.seq_len tokens.
SHARES = (  # Scores from 0 to 1.
    *("accuracy", "auc", "recall@1", "recall@10", "mrr", "ndcg@10"),
    *("f1", "macro_f1", "span_f1"),
)
COMMAND_NUMBERS = (  # Settings that a command sets to the number that is recorded.
    *("seed", "train.steps", "train.batch_size", "train.seq_len"),
    *("optimizer.learning_rate", "model.width", "model.depth"),
)
POSITIVE_SCORES = ("bits_per_byte", "nats_per_token")
LOGGED_LOSSES = ("loss", "nats", "bits_per_byte")  # None is below 0.


def find_inconsistencies(
    run: CheckedFields,
    status: CheckedFields,
    metrics: Sequence[CheckedFields],
    events: Sequence[CheckedFields],
    results: Sequence[CheckedFields],
    *,
    is_finished: bool,
) -> list[str]:
    """Returns what no run can state of itself.

    Args:
        run: run.json.
        status: status.json.
        metrics: rows of metrics.jsonl by increasing step.
        events: rows of events.jsonl.
        results: results of the tasks at the last step.
        is_finished: whether the run has finished; only then its log must be complete.
    """
    problems = [*_cost_problems(run), *_score_problems(run, results), *_seal_problems(run, status)]
    problems += _command_problems(run)
    if is_finished:
        problems += _status_problems(run, status)
        problems += _log_problems(run, metrics, events)
    return problems


def _cost_problems(run: CheckedFields) -> Iterator[str]:
    """Yields costs that do not follow from each other or from the settings."""
    cost, settings = run.section("cost"), run.section("settings")
    token, forward = cost.nonnegative("training_flops"), cost.nonnegative("model_flops")
    if token is not None and forward is not None and not _agree(token, 3 * forward):
        yield (
            f"it states {token:.6g} FLOPs of training for a token, but three times those of the "
            f"forward pass are {3 * forward:.6g}"
        )
    terms = cost.section("terms")
    if forward and len(terms.tree) > 1:
        total = sum(terms.section(name).nonnegative("model") or 0.0 for name in terms.tree)
        if not _agree(total, forward):
            yield f"its terms add up to {total:.6g} FLOPs, but it states {forward:.6g}"
    params, active = cost.nonnegative("params"), cost.nonnegative("active_params")
    if params is not None and active is not None and active > params:
        yield f"it states {active:,.0f} active parameters of {params:,.0f}"
    by_part = cost.section("params_by_part")
    counts = [by_part.nonnegative(name) or 0.0 for name in by_part.tree]
    if params is not None and counts and not _agree(sum(counts), params):
        yield f"its parts add up to {sum(counts):,.0f} parameters, but it states {params:,.0f}"
    body = cost.nonnegative("non_embedding_params")
    if params is not None and body is not None and body > params:
        yield f"it states {body:,.0f} parameters without embedding of {params:,.0f}"
    train, tokens = settings.section("train"), cost.nonnegative("run_tokens")
    expected = math.prod(train.nonnegative(k) or 0.0 for k in ("steps", "batch_size", "seq_len"))
    is_counted = settings.text("objective") in FIXED_LENGTH_OBJECTIVES
    if is_counted and tokens and expected and not _agree(tokens, expected):
        yield (
            f"its costs count {tokens:,.0f} tokens, but steps x batch x length is {expected:,.0f}"
        )


def _score_problems(run: CheckedFields, results: Sequence[CheckedFields]) -> Iterator[str]:
    """Yields scores outside of their range, and evaluations on other data than the run's."""
    data = run.section("fingerprints").text("data")
    for task in results:
        evaluated = task.text("data")
        if data and evaluated and evaluated != data:
            yield (
                f"its task {task.text('task', 60)} was evaluated on data {evaluated[:10]}, but it "
                f"was trained on {data[:10]}"
            )
        for row in task.objects("scores"):
            value = None if row.is_text("value") else row.number("value")
            name = row.text("name", 80)
            metric = name.rpartition("/")[2]
            if value is None or math.isnan(value):
                continue
            if metric in POSITIVE_SCORES and value <= 0:
                yield f"its {name} is {value:.6g}, must be above 0"
            if metric in SHARES and not -TOLERANCE <= value <= 1 + TOLERANCE:
                yield f"its {name} is {value:.6g}, must be from 0 to 1"


def _seal_problems(run: CheckedFields, status: CheckedFields) -> Iterator[str]:
    """Yields a run.json without the mark that its files have hashes, beside files with hashes."""
    if status.tree.get("files") and not ("sealed" in run.tree or "sha256" in run.tree):
        yield "its status.json has the hashes of its files, but its run.json says it has none"


def _command_problems(run: CheckedFields) -> Iterator[str]:
    """Yields numbers that the command of train.py sets to something else than the settings say.

    Other commands, as that of a study, train runs whose settings differ from their flags.
    """
    program, *words = run.texts("command", 1000) or ("",)
    if PurePath(program).name != "train.py":
        return
    flags: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        flags[name.lstrip("-")] = value if equals else following
    for key in COMMAND_NUMBERS:
        fields, (*sections, name) = run.section("settings"), key.split(".")
        for section in sections:
            fields = fields.section(section)
        recorded = fields.number(name)
        try:
            commanded = float(flags.get(f"config.{key}", "nan"))
        except ValueError:
            continue
        if recorded is not None and not (math.isnan(commanded) or _agree(commanded, recorded)):
            yield f"its command sets {key} to {commanded:g}, but its settings have {recorded:g}"


def _status_problems(run: CheckedFields, status: CheckedFields) -> Iterator[str]:
    steps, step = run.section("settings").section("train").count("steps"), status.count("step")
    if steps and step is not None and step != steps:
        yield f"its status.json has finished at step {step}, but it has {steps} steps"


def _log_problems(
    run: CheckedFields, metrics: Sequence[CheckedFields], events: Sequence[CheckedFields]
) -> Iterator[str]:
    """Yields rows that are missing, count other tokens, or are of an attempt without an event."""
    settings = run.section("settings")
    train, log = settings.section("train"), settings.section("log")
    trained = [row for row in metrics if row.number("tokens") is not None]
    if not trained:
        return
    kinds = [event.text("event") for event in events]
    if not {"start", "resume"} & {*kinds}:
        yield "its events.jsonl has no start, so that changes of its settings may be missing"
    yield from _loss_problems(trained)
    steps, interval = train.count("steps") or 0, log.count("every") or 0
    n_expected = -(-steps // interval) if interval else 0
    # Rows are damaged in an accident, and another interval is set, with an event.
    is_regular = not {"file_damaged", "settings_changed", "rollback"} & {*kinds}
    if is_regular and len(trained) < n_expected:
        yield f"its log has {len(trained)} rows of training, but every {interval} steps are a row"
    tokens_per_step = (train.nonnegative("batch_size") or 0) * (train.nonnegative("seq_len") or 0)
    if settings.text("objective") in FIXED_LENGTH_OBJECTIVES and tokens_per_step:
        for row in trained[:-1]:
            expected = (row.count("step") or 0) * tokens_per_step
            if not _agree(row.number("tokens") or 0.0, expected):
                yield (
                    f"its log counts {row.number('tokens'):,.0f} tokens at step "
                    f"{row.count('step')}, but steps x batch x length is {expected:,.0f}"
                )
                break
    attempts = max((row.count("attempt") or 1 for row in metrics), default=1)
    n_starts = sum(kind in ("start", "resume") for kind in kinds)
    if events and n_starts and attempts > 1 and "resume" not in kinds and n_starts < 2:
        yield f"its log has rows of attempt {attempts}, but its events have no resume"
    for earlier, later in zip(trained, trained[1:], strict=False):
        start, end = earlier.nonnegative("seconds"), later.nonnegative("seconds")
        if earlier.count("attempt") != later.count("attempt") or start is None or end is None:
            continue
        if end < start:
            yield (
                f"its log has step {later.count('step')} at {end:g} s, before step "
                f"{earlier.count('step')} at {start:g} s"
            )
            break


def _loss_problems(trained: Sequence[CheckedFields]) -> Iterator[str]:
    """Yields the first logged loss that no finished run has: below 0, or not finite.

    A loss that is not finite ends a run, or its update is skipped and counted.
    """
    for row in trained:
        for name in LOGGED_LOSSES:
            value, step = row.number(name), row.count("step")
            if value is None:
                continue
            if value < 0:
                yield f"its log has {name} {value:.6g} at step {step}, must not be below 0"
                return
            if not math.isfinite(value) and not row.nonnegative("skipped"):
                yield (
                    f"its log has {name} {value:g} at step {step}, although the run went on and "
                    "skipped no update there"
                )
                return


def _agree(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE)
