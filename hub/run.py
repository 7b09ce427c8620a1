"""Between checkpoints and runs: parameters to begin with, runs from folders, folders from runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

import hub
from data import open_data
from data.sources import DataConfig
from data.tokenizers import FILE as TOKENIZER
from data.tokenizers import JsonTokenizer, Tokenizer
from errors import CheckpointError, ConfigError, DataError
from hub import card, checkpoint
from hub.fetch import local
from hub.graph import differences
from training import launch, restore
from training import mesh as meshes
from training.files import read_json
from training.flags import from_json
from training.program import Program
from training.settings import Settings, TrainConfig
from training.state import new_learner

OBJECTIVES = {"causal": "causal_lm", "masked": "masked_lm", "seq2seq": "denoising"}
LENGTH = 256  # tokens of a row in a run around imported parameters, if it has room


def parameters(source: str, made: Program, tokenizer: str) -> Any:
    """What `--init_from` names: a run, or a folder of Hugging Face's; `tokenizer` is the
    fingerprint of the one that the run reads text with.
    """
    if any((Path(source) / name).exists() for name in ("run.json", "checkpoints")):
        return launch.of_run(source, made, tokenizer)
    folder = local(source)
    family, config = checkpoint.family_of(folder)
    own = made.settings.model
    if missed := differences(own, config):
        raise ConfigError(
            f"{folder} is another model than config.model: {'; '.join(missed[:5])}; give its "
            "config, as python -m hub import SRC --workdir=RUN and --config=RUN/run.json do"
        )
    theirs = checkpoint.tokenizer_of(folder, config)
    if theirs is not None and theirs.fingerprint != tokenizer:
        raise DataError(
            f"{folder} has another tokenizer ({theirs.fingerprint[:12]}) than this run "
            f"({tokenizer[:12]}); set data.tokenizer to {folder / TOKENIZER}"
        )
    model = checkpoint.load_model(folder, family, own, made.mesh)
    return made.state.learner._replace(model=model, head=None)  # its head begins anew


def adopt(source: str, workdir: Path, data: DataConfig | None = None) -> None:
    """Make a run folder of a checkpoint, which --init_from, --config and evaluation can read; it is
    judged on `data`, by default the embedded corpus.
    """
    folder = local(source)
    family, config = checkpoint.family_of(folder)
    tokenizer = checkpoint.tokenizer_of(folder, config)
    own = workdir / "tokenizer"
    if tokenizer is not None:
        own.mkdir(parents=True, exist_ok=True)
        tokenizer.save(own)
    length = min(LENGTH, config.positions.length or LENGTH)
    settings = Settings(
        model=config,
        objective=OBJECTIVES[family.task],  # type: ignore[arg-type]
        data=dataclasses.replace(
            data or DataConfig(), tokenizer="bytes" if tokenizer is None else str(own.resolve())
        ),
        train=TrainConfig(steps=0, length=length),
    )
    launch.adopt(settings, workdir, str(folder), parameters)


def export(run: Path, to: Path, family: str = "", dtype: str = "float32") -> str:
    """Write the newest good checkpoint of a run as a folder; the name of its family."""
    record = read_json(run / "run.json")
    if record is None or "settings" not in record:
        raise CheckpointError(f"{run} is no run folder: it has no run.json; give one of train.py")
    if to.exists() and any(to.iterdir()):
        raise ConfigError(f"{to} is not empty; give another folder")
    settings = from_json(Settings, record["settings"])
    rows = [m.objective.rows(settings.model, settings.train.length) for m in settings.members()]
    views = sorted({row.view for row in rows})
    tokenizer = open_data(settings.data).tokenizer
    pad = tokenizer.specials.pad
    found, _ = checkpoint.exported(settings.model, family, views, pad)  # before parameters are read
    root = run / "checkpoints"
    step = restore.newest(root)
    told = about(settings, tokenizer)
    learner = restore.restore_subset(root, step, _abstract(settings), "learner")
    hub.save(
        *(learner.model, settings.model, to),
        family=found.kind,
        dtype=dtype,
        about=told,
        tokenizer=tokenizer if isinstance(tokenizer, JsonTokenizer) else None,
    )
    ids = {k: v for k, v in told.items() if k.endswith("_token_id")}
    _write(to / "generation_config.json", ids)
    (to / "README.md").write_text(card.text(record, run, step, found.architecture))
    return found.kind


def about(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says besides the model: ids of specials, and how long rows were."""
    names = ("bos", "eos", "pad")
    ids = {f"{name}_token_id": getattr(tokenizer.specials, name) for name in names}
    found = {name: value for name, value in ids.items() if value >= 0}
    if settings.model.encoder.depth and "bos_token_id" in found:
        found["decoder_start_token_id"] = found["bos_token_id"]  # as targets begin in training
    turns = any(e.mixer.endswith("attention") for e in settings.model.plan().entries())
    if turns and not settings.model.positions.learned and not settings.model.encoder.depth:
        found["max_position_embeddings"] = settings.train.length
    return found


def _abstract(settings: Settings) -> Any:
    """The learner's shapes, on the first device."""
    mesh = meshes.build(meshes.MeshConfig(), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: new_learner(settings.model, settings.chosen(), 0))
    alone = NamedSharding(mesh, jax.P())
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=alone), shapes)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
