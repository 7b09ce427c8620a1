"""Converts checkpoints to runs and back, and loads the initial parameters of a run."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import NamedSharding

import hub
from data.chats.templates import export_template
from data.framing import Framing
from data.open_stores import open_data
from data.settings import DataConfig
from data.tokenizers import JsonTokenizer, Tokenizer
from errors import CheckpointError, ConfigError, DataError
from hub import checkpoint, model_card, vocabulary
from hub.config_equivalence import differences
from hub.download import resolve_folder
from hub.families import lookup
from hub.family import HfFamily
from hub.hf_config import write_json
from hub.sentence_modules import read_sentence_modules
from settings.changes import with_changes
from settings.json_types import JsonObject
from settings.tree import from_json
from storage import scratch
from storage.paths import expand_user
from storage.remote import is_url
from training import mesh as meshes
from training import runner
from training.checkpoint import initial_params, restore
from training.program import TrainProgram
from training.run.atomic_io import read_json
from training.run.resume_check import check_fingerprints, check_record
from training.run.run_paths import staged_folder, validate_run_path
from training.settings import Settings, TrainConfig
from training.state import Trainable, init_trainable

OBJECTIVE_OF_TASK = {"causal": "causal_lm", "masked": "masked_lm", "seq2seq": "denoising"}
MAX_IMPORT_LENGTH = 2048  # tokens of a row in an imported run, unless the model allows fewer
MAX_DENOISING_LENGTH = 512  # tokens of a row of T5, whose spans have 100 sentinels
FramingChoice = Literal["published", "bos", "none"]


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
    if _is_run(source):
        return initial_params.params_from_run(source, program, tokenizer_fingerprint)
    folder = resolve_folder(source)
    family = _check_folder(folder, program, tokenizer_fingerprint)
    model = checkpoint.load_model(folder, family, program.settings.model, program.mesh)
    return program.abstract_state.trainable._replace(model=model, head=None)


def check_params(source: str, program: TrainProgram, tokenizer_fingerprint: str) -> None:
    """Checks what `load_params` would load, and neither reads nor downloads parameters.

    Raises:
        CheckpointError: if a run has no checkpoint that fits.
        ConfigError: if a checkpoint is another model than `config.model`.
        DataError: if a checkpoint has another tokenizer than the run.
    """
    if is_url(source):
        return
    folder = expand_user(source, "--init_from")
    if _is_run(folder):
        initial_params.check_params_of_run(str(folder), program, tokenizer_fingerprint)
    elif folder.is_dir():
        _check_folder(folder, program, tokenizer_fingerprint)


def _is_run(source: str | Path) -> bool:
    return any((Path(source) / name).exists() for name in ("run.json", "checkpoints"))


def _check_folder(folder: Path, program: TrainProgram, tokenizer_fingerprint: str) -> HfFamily:
    """Returns the family of a folder of Hugging Face's format whose model is that of the run.

    Raises:
        ConfigError: if the folder has another model.
        DataError: if it has another tokenizer.
    """
    family, config = lookup.detect_family(folder)
    if mismatches := differences(program.settings.model, config):
        raise ConfigError(
            f"{folder} is another model than config.model: {'; '.join(mismatches[:5])}; use its "
            "config: python -m hub import SRC --workdir=RUN, then --config=RUN/run.json"
        )
    tokenizer = vocabulary.load_tokenizer(folder, config)
    if tokenizer is not None and tokenizer_fingerprint not in vocabulary.fingerprints(
        tokenizer, folder
    ):
        raise DataError(
            f"{folder} has another tokenizer ({tokenizer.fingerprint[:12]}) than this run "
            f"({tokenizer_fingerprint[:12]}); set data.tokenizer to {folder}"
        )
    return family


def import_as_run(
    source: str,
    workdir: Path,
    data_config: DataConfig | None = None,
    framing: FramingChoice = "published",
) -> Tokenizer | None:
    """Creates a run folder from a checkpoint, for --init_from, --config and evaluation.

    A model whose files say how it embeds sentences (modules.json) is a contrastive run.

    Args:
        source: a folder, or `owner/name[@revision]` of the hub.
        workdir: the run folder to create.
        data_config: the data on which the run is evaluated, by default the embedded corpus.
        framing: what precedes a context, a prompt and a text: what the files of the model say, the
            token bos, or nothing. The run records it beside its tokenizer.

    Returns:
        The tokenizer of the model, None if it has none; the run then reads bytes.
    """
    workdir = validate_run_path(scratch.local_path(workdir))
    folder = resolve_folder(source)
    family, config = lookup.detect_family(folder)
    tokenizer = vocabulary.load_tokenizer(folder, config)
    sentences = read_sentence_modules(folder)
    tokenizer_folder = workdir / "tokenizer"
    if isinstance(tokenizer, JsonTokenizer):
        tokenizer.use_framing(tokenizer.specials, _framed_as(framing, tokenizer))
    tokenizer_name = "bytes"
    if tokenizer is not None:
        tokenizer_folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(tokenizer_folder)
        # In a store, the run replaces its scratch folder, and other machines have no such path.
        scratch.upload_tree(tokenizer_folder)
        tokenizer_name = scratch.url_of(tokenizer_folder) or str(tokenizer_folder.resolve())
    window = tokenizer.framing.window if tokenizer is not None else 0
    max_length = MAX_DENOISING_LENGTH if family.task == "seq2seq" else MAX_IMPORT_LENGTH
    longest = sentences.max_length if sentences else 0
    limits = (max_length, window, config.positions.max_length, longest)
    length = min(limit for limit in limits if limit)
    objective = "contrastive" if sentences else OBJECTIVE_OF_TASK[family.task]
    settings = Settings(
        model=config,
        objective=objective,  # type: ignore[arg-type]
        data=dataclasses.replace(data_config or DataConfig(), tokenizer=tokenizer_name),
        train=TrainConfig(steps=0, seq_len=length),
    )
    if sentences:
        view = "causal" if family.task == "causal" else "bidirectional"
        pooling = {"contrastive.pooling": sentences.pooling, "contrastive.view": view}
        settings = with_changes(settings, pooling)
    runner.create_run_from_params(settings, workdir, str(folder), load_params)
    return tokenizer


def _framed_as(choice: FramingChoice, tokenizer: Tokenizer) -> Framing:
    """Returns the tokenizer's framing with another prefix of texts, if `choice` asks for one.

    Raises:
        ConfigError: if it asks for a bos that the tokenizer lacks.
    """
    if choice == "published":
        return tokenizer.framing
    if choice == "bos" and tokenizer.specials.bos < 0:
        raise ConfigError(
            "--framing=bos: the tokenizer has no bos; use --framing=published or none"
        )
    prefix = (tokenizer.specials.bos,) if choice == "bos" else ()
    return dataclasses.replace(tokenizer.framing, text_prefix=prefix)


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
        DataError: if the tokenizer is not that of the training.
    """
    run, target = scratch.local_copy(run), scratch.local_path(target)
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
    tokenizer = open_data(settings.data, settings.store_kinds).tokenizer
    check_fingerprints(run, record, {"tokenizer": tokenizer.fingerprint})
    # A model that cannot be exported is refused before its parameters are read.
    hf_family, _ = lookup.find_export_family(settings.model, family, views, tokenizer.specials.pad)
    _check_head_is_exported(settings, hf_family)
    root = run / "checkpoints"
    step = restore.newest_step(root)
    use = text_use(settings, tokenizer, is_causal=hf_family.task == "causal")
    extra_config = make_extra_config(settings, tokenizer, use)
    ids = {k: v for k, v in extra_config.items() if k.endswith("_token_id")}
    if use.stop_ids:
        ids["eos_token_id"] = list(use.stop_ids) if len(use.stop_ids) > 1 else use.stop_ids[0]
    card = model_card.format_card(record, run, step, hf_family.architecture_of(settings.model))
    with staged_folder(target) as stage:
        trainable = restore.restore_subset(root, step, _abstract_trainable(settings), "trainable")
        hub.save(
            *(trainable.model, settings.model, stage),
            family=hf_family.model_type,
            dtype=dtype,
            extra_config=extra_config,
            tokenizer=tokenizer if isinstance(tokenizer, JsonTokenizer) else None,
            text_use=use,
        )
        write_json(stage / "generation_config.json", ids)
        (stage / "README.md").write_text(card)
    scratch.upload_tree(target)
    return hf_family.model_type


def _check_head_is_exported(settings: Settings, family: HfFamily) -> None:
    """Refuses to export a model of masked tokens as an encoder without a head.

    Raises:
        ConfigError: if the run was trained to predict tokens, and the export would not.
    """
    if (
        family.is_bare(settings.model)
        and settings.train.steps
        and settings.objective == "masked_lm"
    ):
        raise ConfigError(
            f"a {family.model_type} predicts masked tokens by a head with a transform, which "
            "config.model lacks; train with model.head.mlm_transform=True and model.head.bias=True"
        )


def text_use(settings: Settings, tokenizer: Tokenizer, *, is_causal: bool) -> vocabulary.TextUse:
    """Returns how texts are framed by what a run was trained with, or by an imported model's files.

    A chat ends its turns with the marker of the template, which then is the tokenizer's eos.
    """
    if not settings.train.steps:
        return vocabulary.published_use(tokenizer, is_causal)
    framing, eos = tokenizer.framing, tokenizer.specials.eos
    stops = {*framing.stop_ids, *framing.document_suffix}
    suffix = () if is_causal else framing.document_suffix
    chat = export_template(settings.data.chat_template, tokenizer)
    first = chat.end_of_turn.token_id if chat and chat.end_of_turn.token_id >= 0 else eos
    stops |= {first} if first >= 0 else set()
    ordered = tuple(sorted(stops, key=lambda i: (i != first, i)))
    template = chat.jinja if chat else ""
    return vocabulary.TextUse(framing.document_prefix, suffix, ordered, template)


def make_extra_config(
    settings: Settings, tokenizer: Tokenizer, use: vocabulary.TextUse
) -> JsonObject:
    """Returns keys of config.json for the ids of special tokens and the length of the rows."""
    specials, model = tokenizer.specials, settings.model
    eos = use.stop_ids[0] if use.stop_ids else specials.eos
    ids = {"bos": specials.bos, "eos": eos, "pad": specials.pad}
    keys = {f"{name}_token_id": value for name, value in ids.items() if value >= 0}
    if model.encoder.depth and specials.decoder_start >= 0:
        keys["decoder_start_token_id"] = specials.decoder_start
    specs = model.layer_layout().layer_specs()
    has_attention = any(name.endswith("attention") for spec in specs for name, _ in spec.mixers())
    if has_attention and not model.positions.learned and not model.encoder.depth:
        window = 0 if settings.train.steps else tokenizer.framing.window
        keys["max_position_embeddings"] = window or settings.train.seq_len
    return keys


def _abstract_trainable(settings: Settings) -> Trainable:
    """Returns the shapes of model and objective parameters, placed on the first device."""
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: init_trainable(settings.model, settings.get_objective(), 0))
    sharding = NamedSharding(mesh, jax.P())
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)
