"""Writes plan.json beside the runs of a study, before any of them (`records/plan_file.py`)."""

from collections.abc import Collection, Mapping
from pathlib import Path

from errors import DataError
from protocol.records.plan_file import FILE_NAME, FORMAT, hash_json, read_plans
from protocol.study.cells import CellKey
from protocol.study.declaration import TuningChoice
from protocol.study.study_plan import StudyPlan, choices_tree
from storage import scratch
from training.run.atomic_io import read_json, write_json


def write_plan(
    folder: Path,
    plan: StudyPlan,
    choices: Mapping[CellKey, TuningChoice],
    sweep_hash: str = "",
) -> list[str]:
    """Adds a plan to plan.json, unless it is there; earlier plans stay.

    Args:
        folder: the folder of the runs.
        plan: the plan.
        choices: what tuning selected; empty before tuning.
        sweep_hash: SHA-256 of the recorded sweep that the choices come from.

    Returns:
        A line for each thing that the user should know before the runs.

    Raises:
        DataError: if the file is damaged.
    """
    scratch.refresh_file(folder / FILE_NAME)
    try:
        earlier = read_plans(folder)
    except DataError as error:
        raise DataError(
            f"{folder / FILE_NAME}: {error}; restore it, or give another --workdir"
        ) from None
    tree = choices_tree(plan, choices, sweep_hash) if choices else {}
    if (plan.digest, hash_json(tree)) in earlier:
        return []
    record = read_json(folder / FILE_NAME) or {"format": FORMAT, "plans": []}
    record["plans"].append({"declared": plan.declared_tree, "choices": tree})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE_NAME, record)
    scratch.upload_file(folder / FILE_NAME)
    reported = [old.study.seeds for old in earlier.values() if _is_reported(old.study.comparisons)]
    if not choices or not _is_reported(plan.declaration.comparisons) or not reported:
        return []
    if plan.seeds in reported:
        return []
    return [
        f"{folder / FILE_NAME} has an earlier plan with the seeds {list(reported[0])}: the board "
        "counts that plan alone as declared. To add seeds to a study, declare looks"
    ]


def _is_reported(comparisons: Collection[tuple[str, str]]) -> bool:
    """Returns whether a plan is no noise floor, which compares each candidate with itself."""
    return not comparisons or any(a != b for a, b in comparisons)
