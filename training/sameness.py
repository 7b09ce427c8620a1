"""Whether what stands in a run folder is the run that is asked for, and what has changed since."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from errors import CheckpointError, ConfigError, DataError
from training.environment import FORMAT
from training.tree import differences


def check_same(
    path: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    resumable: Sequence[str],
    allow_changed: bool,
) -> None:
    """An error if run.json (`old`) is not of the run that `new` describes, but for settings that
    may change."""
    version = old.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"{path}/run.json has format {version}, this is isoflop with format {FORMAT}; use the "
            "version that wrote it"
        )
    kinds = {"run_id": str, "created": str, "settings": Mapping}
    if not all(isinstance(old.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{path}/run.json is no record of a run; use another --workdir")
    changes = {
        key: change
        for key, change in differing(old, new, "settings").items()
        if not any(fnmatchcase(key, pattern) for pattern in resumable)
    }
    if changes:
        raise ConfigError(
            f"{path} is a run with other settings: {listed(changes)}; use them, or another "
            "--workdir (--init_from takes the parameters along)"
        )
    changes = differing(old, new, "fingerprints")
    if changes and not allow_changed:
        raise DataError(
            f"{path} was trained on other data: {listed(changes)}; restore it, use another "
            "--workdir, or set --config.data.allow_changed=true"
        )


def began(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a run that goes on: where its parameters came from stays as it was."""
    flags, before = dict(new.get("flags") or {}), dict(old.get("flags") or {})
    source, asked = before.get("init_from") or "", flags.get("init_from") or ""
    if asked and asked != source:
        how = f"from --init_from={source}" if source else "without --init_from"
        raise ConfigError(
            f"{path} began {how}, not from {asked}; leave it out, or use another --workdir"
        )
    return flags | ({"init_from": source} if source else {})


def differing(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> dict[str, list]:
    """What `key` held and holds, by dotted name."""
    pair = [{key: record[key]} if key in record else {} for record in (old, new)]
    return {name.removeprefix(f"{key}."): [a, b] for name, a, b in differences(*pair)}


def listed(changes: Mapping[str, list], most: int = 5) -> str:
    """The first changes, as people read them."""
    texts = [f"{key} {_short(a)} -> {_short(b)}" for key, (a, b) in list(changes.items())[:most]]
    more = len(changes) - most
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


def brief(details: Mapping[str, Any]) -> str:
    """Details of an event in a line."""
    return " ".join(f"{key}={_short(value)}" for key, value in details.items())
