"""Checks whether a run folder holds the run that a command describes, and finds the changes."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from errors import CheckpointError, ConfigError, DataError
from formatting import truncate_middle
from settings import run_json
from settings.json_types import JsonObject
from settings.tree import differences

SOURCE_HASH = "init_from_sha256"  # The flag of run.json with the hash of what `init_from` named.
# Kind of the event, section of run.json, and its name in the message.
CHANGE_EVENTS = (
    ("devices_changed", "mesh", "mesh"),
    ("devices_changed", "devices", "devices"),
    *(
        ("environment_changed", key, f"since the last attempt {key}")
        for key in ("environment", "packages", "python", "code")
    ),
    ("settings_changed", "settings", "settings"),
    ("data_changed", "fingerprints", "data or tokenizer"),
)


def check_record(path: Path, record: Mapping[str, object]) -> None:
    """Checks that this version can read the run.json (`record`) of the run folder `path`.

    Raises:
        CheckpointError: if run.json has another format, or other content than was written.
    """
    if problem := run_json.find_problem(record):
        raise CheckpointError(f"{path}/run.json {problem}")


def check_resumable(
    path: Path,
    old: Mapping[str, object],
    new: Mapping[str, object],
    resumable: Sequence[str],
    allow_changed: bool,
) -> None:
    """Checks that the run.json in `path` (`old`) belongs to the run that `new` describes.

    Settings that match a pattern in `resumable` may differ. With `allow_changed` the data and the
    tokenizer may differ, too.

    Raises:
        CheckpointError: if run.json has another format or is not the record of a run.
        ConfigError: if other settings differ.
        DataError: if the data or the tokenizer differ.
    """
    check_record(path, old)
    kinds = {"run_id": str, "created": str, "settings": Mapping}
    if not all(isinstance(old.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{path}/run.json is not the record of a run; use another --workdir")
    changes = {
        key: change
        for key, change in find_changes(old, new, "settings").items()
        if not any(fnmatchcase(key, pattern) for pattern in resumable)
    }
    if changes:
        raise ConfigError(
            f"{path} is a run with other settings: {format_changes(changes)}; use them, or another "
            f"--workdir (--init_from starts a new run with its parameters){_batch_hint(changes)}"
        )
    changes = find_changes(old, new, "fingerprints")
    if changes and not allow_changed:
        raise DataError(
            f"{path} was trained on other data: {format_changes(changes)}; restore it, use another "
            "--workdir, or set --config.data.allow_changed=true"
        )


def check_fingerprints(
    path: Path, record: Mapping[str, object], fingerprints: Mapping[str, str]
) -> None:
    """Checks that a run which is only read still has the tokenizer, or the data, of its training.

    A changed file of `data.path` gives other token stores, and another learned vocabulary that fits
    the parameters in shape alone. Fingerprints that run.json lacks are not compared.

    Raises:
        DataError: if one of `fingerprints` is not the recorded one.
    """
    recorded = record.get("fingerprints")
    for name, actual in fingerprints.items():
        expected = recorded.get(name, actual) if isinstance(recorded, Mapping) else actual
        if expected != actual:
            setting = "data.tokenizer or of data.path" if name == "tokenizer" else "data.path"
            raise DataError(
                f"{path} was trained with the {name} {str(expected)[:12]}, its settings now give "
                f"{actual[:12]}: files of {setting} have changed; restore them"
            )


def _batch_hint(changes: Mapping[str, list]) -> str:
    """Returns how a run with a smaller batch goes on: in parts, which change no step of it."""
    if "train.batch_size" not in changes:
        return ""
    old = changes["train.batch_size"][0]
    return (
        f"; if a batch of {old} does not fit these devices, keep train.batch_size={old} and set "
        "train.grad_accum_steps, which may change"
    )


def resume_flags(path: Path, old: JsonObject, new: JsonObject) -> JsonObject:
    """Returns the flags of a resumed run: those of the command, with the original `init_from`.

    The hash of its parameters stays too.

    Raises:
        ConfigError: if the command has another `init_from` than the run started with.
    """
    flags, old_flags = dict(new.get("flags") or {}), dict(old.get("flags") or {})
    source, new_source = old_flags.get("init_from") or "", flags.get("init_from") or ""
    if new_source and new_source != source:
        start = f"from --init_from={source}" if source else "without --init_from"
        raise ConfigError(
            f"{path} started {start}, not from {new_source}; leave it out, or use another --workdir"
        )
    beginning = {"init_from": source, SOURCE_HASH: old_flags.get(SOURCE_HASH, "")}
    return flags | {name: value for name, value in beginning.items() if source and value}


def find_changes(old: Mapping[str, object], new: Mapping[str, object], key: str) -> dict[str, list]:
    """Returns [old value, new value] for every leaf below `key` that differs, by dotted name."""
    pair = [{key: record[key]} if key in record else {} for record in (old, new)]
    return {name.removeprefix(f"{key}."): [a, b] for name, a, b in differences(*pair)}


def change_events(old: JsonObject, new: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Yields the kind and the details of the event for each section of run.json that differs."""
    for kind, key, subject in CHANGE_EVENTS:
        if changes := find_changes(old, new, key):
            message = f"{subject} changed: {format_changes(changes)}"
            yield kind, {"message": message, "changes": changes}


def format_changes(changes: Mapping[str, list], max_items: int = 5) -> str:
    """Formats the first changes for a message, and the number of the others."""
    texts = [
        f"{key} {truncate_middle(a)} -> {truncate_middle(b)}"
        for key, (a, b) in list(changes.items())[:max_items]
    ]
    excess = len(changes) - max_items
    return ", ".join(texts) + (f" and {excess} more" if excess > 0 else "")


def format_event(details: Mapping[str, object]) -> str:
    """Formats the details of an event as one line."""
    return " ".join(f"{key}={truncate_middle(value)}" for key, value in details.items())
