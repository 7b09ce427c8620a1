"""Converts checkpoints to runs and back, and loads the initial parameters of a run."""

import dataclasses
import json
from pathlib import Path

import jax
from jax.sharding import NamedSharding

import hub
from data import open_data
from data.sources import DataConfig
from data.tokenizers import TOKENIZER_FILE as TOKENIZER
from data.tokenizers import JsonTokenizer, Tokenizer
from errors import CheckpointError, ConfigError, DataError
from hub import checkpoint, model_card
from hub.config_equivalence import differences
from hub.download import resolve_folder
from settings.json_types import JsonObject
from settings.tree import from_json
from training import mesh as meshes
from training import runner
from training.checkpoint import restore
from training.program import TrainProgram
from training.run.atomic_io import read_json, staged_folder, validate_run_path
from training.run.resume_check import check_record
from training.settings import Settings, TrainConfig
from training.state import Trainable, init_trainable

OBJECTIVE_OF_TASK = {"causal": "causal_lm", "masked": "masked_lm", "seq2seq": "denoising"}
MAX_IMPORT_LENGTH = 256  # tokens of a row in an imported run, unless the model allows fewer


def load_params(source: str, program: TrainProgram, tokenizer_fingerprint: str) -> Trainable:
    """Loads the parameters that `--init_from` names, from a run or a Hugging Face folder.

    Args:
        source: a run folder, a checkpoint folder, or `owner/name[@revision]` of the hub.
        program: the program that will train the parameters.
        tokenizer_fingerprint: the fingerprint of the tokenizer of the new run.

    Returns:
        A `Trainable`; its head is None if the objective's own parameters start from scratch.

    Raises:
        ConfigError: if the checkpoint is another model than `config.model`.
        DataError: if the checkpoint has another tokenizer than the run.
    """
    if any((Path(source) / name).exists() for name in ("run.json", "checkpoints")):
        return runner.params_from_run(source, program, tokenizer_fingerprint)
    folder = resolve_folder(source)
    family, config = checkpoint.detect_family(folder)
    model_config = program.settings.model
    if mismatches := differences(model_config, config):
        raise ConfigError(
            f"{folder} is another model than config.model: {'; '.join(mismatches[:5])}; use its "
            "config: python -m hub import SRC --workdir=RUN, then --config=RUN/run.json"
        )
    tokenizer = checkpoint.load_tokenizer(folder, config)
    if tokenizer is not None and tokenizer.fingerprint != tokenizer_fingerprint:
        raise DataError(
            f"{folder} has another tokenizer ({tokenizer.fingerprint[:12]}) than this run "
            f"({tokenizer_fingerprint[:12]}); set data.tokenizer to {folder / TOKENIZER}"
        )
    model = checkpoint.load_model(folder, family, model_config, program.mesh)
    return program.abstract_state.trainable._replace(model=model, head=None)


def import_as_run(source: str, workdir: Path, data_config: DataConfig | None = None) -> None:
    """Creates a run folder from a checkpoint, for --init_from, --config and evaluation.

    `data_config` is the data on which the run is evaluated, by default the embedded corpus.
    """
    validate_run_path(workdir)
    folder = resolve_folder(source)
    family, config = checkpoint.detect_family(folder)
    tokenizer = checkpoint.load_tokenizer(folder, config)
    tokenizer_folder = workdir / "tokenizer"
    if tokenizer is not None:
        tokenizer_folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(tokenizer_folder)
    length = min(MAX_IMPORT_LENGTH, config.positions.max_length or MAX_IMPORT_LENGTH)
    settings = Settings(
        model=config,
        objective=OBJECTIVE_OF_TASK[family.task],  # type: ignore[arg-type]
        data=dataclasses.replace(
            data_config or DataConfig(),
            tokenizer="bytes" if tokenizer is None else str(tokenizer_folder.resolve()),
        ),
        train=TrainConfig(steps=0, seq_len=length),
    )
    runner.create_run_from_params(settings, workdir, str(folder), load_params)


def export_run(run: Path, target: Path, family: str = "", dtype: str = "float32") -> str:
    """Exports the newest intact checkpoint of a run, and returns its `model_type`.

    Args:
        run: the run folder.
        target: the folder to write; it must be empty or not exist.
        family: the `model_type` to export as; by default the first one that fits.
        dtype: the dtype of the tensors.

    Raises:
        CheckpointError: if `run` is not a run folder.
        ConfigError: if `target` is not empty.
    """
    record = read_json(run / "run.json")
    if record is None or "settings" not in record:
        raise CheckpointError(
            f"{run} is not a run folder: it has no run.json; give a folder that train.py wrote"
        )
    check_record(run, record)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty; give another folder")
    settings = from_json(Settings, record["settings"])
    row_specs = [
        part.objective.row_spec(settings.model, settings.train.seq_len)
        for part in settings.mixture_parts()
    ]
    views = sorted({row_spec.view for row_spec in row_specs})
    tokenizer = open_data(settings.data).tokenizer
    # A model that cannot be exported is refused before its parameters are read.
    hf_family, _ = checkpoint.find_export_family(
        settings.model, family, views, tokenizer.specials.pad
    )
    root = run / "checkpoints"
    step = restore.newest_step(root)
    extra_config = make_extra_config(settings, tokenizer)
    ids = {k: v for k, v in extra_config.items() if k.endswith("_token_id")}
    card = model_card.format_card(record, run, step, hf_family.architecture)
    with staged_folder(target) as stage:
        trainable = restore.restore_subset(root, step, _abstract_trainable(settings), "trainable")
        hub.save(
            *(trainable.model, settings.model, stage),
            family=hf_family.model_type,
            dtype=dtype,
            extra_config=extra_config,
            tokenizer=tokenizer if isinstance(tokenizer, JsonTokenizer) else None,
        )
        _write_json(stage / "generation_config.json", ids)
        (stage / "README.md").write_text(card)
    return hf_family.model_type


def make_extra_config(settings: Settings, tokenizer: Tokenizer) -> JsonObject:
    """Returns keys of config.json for the ids of special tokens and the length of the rows."""
    names = ("bos", "eos", "pad")
    ids = {f"{name}_token_id": getattr(tokenizer.specials, name) for name in names}
    keys = {name: value for name, value in ids.items() if value >= 0}
    model = settings.model
    if model.encoder.depth and "bos_token_id" in keys:
        keys["decoder_start_token_id"] = keys["bos_token_id"]  # targets start with it in training
    has_attention = any(
        spec.mixer.endswith("attention") for spec in model.layer_layout().layer_specs()
    )
    if has_attention and not model.positions.learned and not model.encoder.depth:
        keys["max_position_embeddings"] = settings.train.seq_len
    return keys


def _abstract_trainable(settings: Settings) -> Trainable:
    """Returns the shapes of model and objective parameters, placed on the first device."""
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: init_trainable(settings.model, settings.get_objective(), 0))
    sharding = NamedSharding(mesh, jax.P())
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def _write_json(path: Path, value: JsonObject) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
