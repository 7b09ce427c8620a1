"""The initial parameters of a run: what `--init_from` names, checked and read."""

from collections.abc import Callable
from pathlib import Path

from errors import CheckpointError
from objectives import Trainable
from settings import run_json
from storage.hashing_file import file_sha256
from training.checkpoint import restore
from training.checkpoint.param_names import named_leaves, shapes_and_dtypes
from training.program import TrainProgram
from training.run.atomic_io import read_json
from training.run.resume_check import check_record

# (source that --init_from names, program, fingerprint of the tokenizer) -> initial parameters
ParamReader = Callable[[str, TrainProgram, str], Trainable]
ParamCheck = Callable[[str, TrainProgram, str], None]  # The checks of a reader alone.


def check_params_of_run(source: str, program: TrainProgram, tokenizer_fingerprint: str) -> int:
    """Checks that another run's parameters fit this one, and returns the step of its checkpoint.

    Raises:
        CheckpointError: if the other run has another tokenizer, or no checkpoint that fits.
    """
    root = Path(source) / "checkpoints"
    if record := read_json(Path(source) / "run.json") or {}:
        check_record(Path(source), record)
    recorded = record.get("fingerprints", {}).get("tokenizer", tokenizer_fingerprint)
    if recorded != tokenizer_fingerprint:
        raise CheckpointError(
            f"--init_from={source} was trained with tokenizer {recorded[:12]}, this run has "
            f"{tokenizer_fingerprint[:12]}; set data.tokenizer to the tokenizer.json of its token "
            "store"
        )
    step = restore.newest_step(root)
    restore.check_subset(root, step, program.abstract_state.trainable.model, "trainable.model")
    return step


def params_from_run(source: str, program: TrainProgram, tokenizer_fingerprint: str) -> Trainable:
    """Returns the parameters of another run's newest valid checkpoint, sharded for this one.

    The head is None, to be initialized anew, unless both runs have a head of the same shapes.

    Raises:
        CheckpointError: if the other run has another tokenizer, or no checkpoint that fits.
    """
    step = check_params_of_run(source, program, tokenizer_fingerprint)
    root, abstract = Path(source) / "checkpoints", program.abstract_state.trainable
    model = restore.restore_subset(root, step, abstract.model, "trainable.model")
    leaves = restore.read_manifest(root, step, check_hashes=False)["leaves"]
    saved_head = {n: leaf for n, leaf in leaves.items() if n.startswith("trainable.head.")}
    expected_head = shapes_and_dtypes(named_leaves(abstract.head, "trainable.head"))
    if saved_head and saved_head == expected_head:
        head = restore.restore_subset(root, step, abstract.head, "trainable.head")
        return Trainable(model, head)
    return Trainable(model)


def source_hash(path: Path) -> str:
    """Returns the hash of the parameters in a run folder or a folder of safetensors, "" of others.

    A path may have other parameters tomorrow, and runs from them are no replicates.
    """
    root = path / "checkpoints"
    if root.is_dir():
        manifest = restore.read_manifest(root, restore.newest_step(root), check_hashes=False)
        return run_json.content_hash(manifest["files"])
    statuses = [(file, file.stat()) for file in sorted(path.glob("*.safetensors"))]
    hashes = {file.name: file_sha256(file, s.st_size, s.st_mtime_ns) for file, s in statuses}
    return run_json.content_hash(hashes) if hashes else ""
