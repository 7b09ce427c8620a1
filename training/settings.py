"""All settings of a run: one frozen tree of the configs that are defined beside the code they set.

Each field is a flag, `--config.section.key=value`. Defaults are in the dataclasses and nowhere
else. Config files start from `defaults()`.
"""

import dataclasses
from typing import Annotated, Literal

from ml_collections import ConfigDict

from arch import ModelConfig
from arch.sequence import View
from data.settings import DataConfig
from data.sources import IMAGE_SOURCES, SOURCE_PATHS, StoreKind
from errors import ConfigError
from objectives import (
    OBJECTIVES,
    Mixture,
    MixtureConfig,
    MixturePart,
    Objective,
    Preference,
    RowSpec,
    mixture_parts,
)
from settings.changes import with_changes
from settings.tree import to_config_dict
from settings.types import (
    MAX_INT32,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
    Seed,
    config,
    did_you_mean,
    with_sections,
)
from training.checkpoint.settings import CheckpointConfig
from training.distributed.fault_injection import parse_faults
from training.mesh import MeshConfig
from training.optimizer import OptimizerConfig
from training.run.settings import LogConfig


@config
class TrainConfig:
    """The length of a run, its batches, and the limits of the process."""

    steps: NonNegativeInt = 1000  # Number of training steps (optimizer updates).
    batch_size: PositiveInt = 16  # Rows per step, over all devices (B).
    seq_len: PositiveInt = 256  # Tokens per row (T).
    # Distinct tokens of training, in whole rows, that a run repeats; 0: those of the whole split.
    unique_tokens: NonNegativeInt = 0
    grad_accum_steps: PositiveInt = 1  # Microbatches per step.
    hang_timeout: NonNegativeInt = 1800  # Seconds without a step before the run ends; 0: no limit.
    # Folder of compiled programs, shared by all runs; "": no cache.
    compile_cache: str = "~/.cache/isoflop/compiled"


AUTOMATIC_LIMIT = -1  # The value of eval.limit that follows from the tokens of training.


CorpusLabel = Literal["source", "genre", "era", "book", "year", "verses"]


@config
class FinetuneConfig:
    """The evaluation task `finetune`: training with one added output layer (arXiv:1810.04805)."""

    # Labels of the embedded corpus that are learned: source, genre, era and book of a passage, year
    # of an address, verses (whether two texts translate one verse).
    labels: tuple[CorpusLabel, ...] = ("genre",)
    # Data sets of labelled examples, separated by commas: files (.tsv, .txt, .csv, .jsonl), or
    # folders whose file names contain train, dev or valid, and test.
    path: str = ""
    # Fields with the text or the two texts of an example; (): the first known names (docs).
    text_fields: tuple[str, ...] = ()
    label_field: str = ""  # Field with the label; "": the first known name (docs).
    # What is predicted; auto: token labels if a label is a list, numbers if one has decimals.
    problem: Literal["auto", "classes", "regression", "tokens"] = "auto"
    # Vector of a text; auto: the pooler of the model, else the mean, or the last if causal.
    pooling: Literal["auto", "pooler", "first", "mean", "last"] = "auto"
    trained: Literal["all", "layer"] = "all"  # Train all parameters, or the output layer alone.
    epochs: PositiveInt = 3  # Passes over the training examples.
    batch_size: PositiveInt = 16  # Examples per update.
    # Learning rates, of which the valid part selects one.
    learning_rates: tuple[PositiveFloat, ...] = (2e-5, 3e-5, 5e-5)
    seeds: PositiveInt = 3  # Runs with the selected learning rate, whose median is the score.
    warmup: Fraction = 0.1  # Share of the updates with learning rate warmup; then it falls to 0.
    weight_decay: NonNegativeFloat = 0.01  # Weight decay of the parameters that decay.
    dropout: Probability = 0.1  # Dropout of embedding, branches and pooled vector.
    max_examples: NonNegativeInt = 0  # Maximum number of training examples; 0: all.
    max_tokens: NonNegativeInt = 0  # Maximum number of tokens of a row; 0: the model's window.

    def check(self) -> None:
        """Checks that there is a learning rate.

        Raises:
            ConfigError: if there is none.
        """
        if not self.learning_rates:
            raise ConfigError("eval.finetune.learning_rates is empty, must be as (2e-5, 5e-5)")


@config
class EvalConfig:
    """The evaluations during a run and at its end."""

    every: NonNegativeInt = 0  # Steps between evaluations on the valid split; 0: only at the end.
    batch_size: PositiveInt = 32  # Rows per batch of an evaluation.
    tasks: tuple[str, ...] = ()  # Evaluation tasks at the end; (): the defaults of the objective.
    # Splits of the data that evaluation tasks read.
    splits: tuple[Literal["valid", "test"], ...] = ("valid", "test")
    # Tokens of each split that are scored at most, spread over it; 0: whole splits; -1: as many as
    # take less than a tenth of the training time.
    limit: Annotated[int, Range(low=AUTOMATIC_LIMIT, high=MAX_INT32)] = AUTOMATIC_LIMIT
    # Prompt of the text sample; in many vocabularies a space at its end is a token of its own.
    sample_prompt: str = "The"
    sample_tokens: NonNegativeInt = 200  # Number of tokens of the text sample.
    finetune: FinetuneConfig = FinetuneConfig()


@config
class DebugConfig:
    """Tools for finding and rehearsing failures."""

    # Failure to rehearse, such as "kill@save:5" (training/distributed/fault_injection.py).
    inject_fault: str = ""

    def check(self) -> None:
        """Checks the form of the faults; a ConfigError names a wrong one before any work."""
        parse_faults(self.inject_fault)

    debug_nans: bool = False  # Repeat a step with a NaN and name the operation that makes it.


@config
@with_sections(OBJECTIVES, after="objective")
class Settings:
    """All settings of a run, with a section for each objective, by its name in OBJECTIVES."""

    # Seed of the initialization, the order of the data and dropout.
    seed: Seed = 0
    model: ModelConfig = ModelConfig()
    # Training objective; its settings are in the section of the same name.
    objective: Annotated[str, OneOf((*OBJECTIVES, "mixture"))] = "causal_lm"
    mixture: MixtureConfig = MixtureConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    debug: DebugConfig = DebugConfig()

    def check(self) -> None:
        """Checks the rules between sections.

        Raises:
            ConfigError: if rows are longer than learned positions, microbatches do not divide the
                batch, eval.limit is below one window, train.unique_tokens below one batch, or the
                model or the data do not suit the objective.
        """
        positions, T = self.model.positions, max_row_length(self)
        if positions.learned and 0 < positions.max_length < T:
            raise ConfigError(
                f"rows have {T} tokens (train.seq_len {self.train.seq_len}), longer than "
                f"model.positions.max_length {positions.max_length}; set one to the value of the "
                "other"
            )
        batch_size, num_parts = self.train.batch_size, self.train.grad_accum_steps
        if batch_size % num_parts:
            raise ConfigError(
                f"train.batch_size {batch_size} is not a multiple of train.grad_accum_steps "
                f"{num_parts}; nearest valid value: {max(batch_size // num_parts, 1) * num_parts}"
            )
        if (steps := self.log.profile_steps()) and steps[1] > self.train.steps:
            raise ConfigError(
                f"log.profile {self.log.profile} is beyond train.steps {self.train.steps}; lower it"
            )
        if not self.model.depth:
            raise ConfigError(
                "model.depth 0 is a vision stack alone, which no objective trains; set it to 1 or "
                "more"
            )
        for part in self.mixture_parts():
            name = part.name or self.objective
            spec = part.objective.row_spec(self.model, T)
            self._check_view(name, spec.view, spec.hint)
            self._check_source(name, spec)
            self._check_limit(spec)
            self._check_unique_tokens(name, part, spec)
            if not part.objective.sums_over_rows and batch_size < 2:
                raise ConfigError(
                    f"train.batch_size {batch_size} is too small for objective {name}, which "
                    "compares the rows of a batch; nearest valid value: 2"
                )

    def get_objective(self) -> Objective:
        """Returns the section of the objective, or the mixture of sections.

        Raises:
            ConfigError: if the mixture names an unknown objective.
        """
        sections: dict[str, Objective] = {name: vars(self)[name] for name in OBJECTIVES}
        if self.objective != "mixture":
            return sections[self.objective]
        for name, _ in self.mixture.parts:
            if name not in sections:
                raise ConfigError(f"mixture.parts has {name!r}; {did_you_mean(name, sections)}")
        return Mixture(tuple(MixturePart(n, sections[n], c) for n, c in self.mixture.parts))

    def mixture_parts(self) -> tuple[MixturePart, ...]:
        """Returns the parts of the mixture, or the one objective as the only part."""
        return mixture_parts(self.get_objective())

    @property
    def row_spec(self) -> RowSpec:
        """The layout of a row, which in a mixture is that of the first part."""
        return self.get_objective().row_spec(self.model, self.train.seq_len)

    @property
    def store_kinds(self) -> tuple[StoreKind, ...]:
        """The kinds of token store that the objective reads, documents first."""
        specs = [p.objective.row_spec(self.model, self.train.seq_len) for p in self.mixture_parts()]
        needed = {spec.store_kind for spec in specs}
        return tuple(kind for kind in SOURCE_PATHS if kind in needed)

    def _check_limit(self, spec: RowSpec) -> None:
        if spec.row_kind == "packed" and 0 < self.eval.limit < spec.text_length:
            raise ConfigError(
                f"eval.limit {self.eval.limit} is below one window of {spec.text_length} tokens, "
                f"so that nothing would be scored; set it to {spec.text_length} or more, or to 0 "
                "for whole splits"
            )

    def _check_unique_tokens(self, name: str, part: MixturePart, spec: RowSpec) -> None:
        limit, row_tokens = self.train.unique_tokens, spec.text_length * spec.n_texts
        if 0 < limit < row_tokens * self.train.batch_size:
            raise ConfigError(
                f"train.unique_tokens {limit} is below one batch of {self.train.batch_size} x "
                f"{row_tokens} tokens; set it to {row_tokens * self.train.batch_size} or more, or "
                "to 0 for the whole split"
            )
        if limit and part.objective.memory_bank is not None:
            raise ConfigError(
                f"train.unique_tokens {limit} with objective {name}, whose memory bank reads the "
                "whole split; set it to 0"
            )

    def _check_source(self, name: str, spec: RowSpec) -> None:
        kind = spec.store_kind
        if self.data.has_weights and kind == "documents" and not spec.allows_weights:
            raise ConfigError(
                f"objective {name} rearranges text, so that data.chat_template and "
                "data.weight_field cannot weight it; leave them empty, or use causal_lm or "
                "masked_lm"
            )
        if spec.n_images:
            self._check_images(name, spec)
        if self.data.kind not in (sources := SOURCE_PATHS[kind]):
            raise ConfigError(
                f"objective {name} reads {kind.replace('_', ' ')}, which data.source "
                f"{self.data.kind!r} does not have; use {' or '.join(sources)}{spec.source_hint}"
            )

    def _check_images(self, name: str, spec: RowSpec) -> None:
        vision, images = self.model.vision, self.data.images
        if self.data.kind not in IMAGE_SOURCES:
            raise ConfigError(
                f"objective {name} reads images, which data.source {self.data.kind!r} does not "
                f"have; use {' or '.join(IMAGE_SOURCES)}, or set model.vision.depth=0"
            )
        if spec.image_prefix[0] and not spec.allows_weights:
            raise ConfigError(
                f"objective {name} rearranges text, which stands behind an image that has no loss; "
                "set causal_lm.fim_rate=0"
            )
        expected = vision.image_size, vision.image_size, vision.channels
        if images.shape != expected:
            raise ConfigError(
                f"data.images gives images of {images.shape}, model.vision reads {expected} "
                "(height, width, channels); set data.images.size and channels to "
                "model.vision.image_size and channels"
            )

    def _check_view(self, name: str, view: View, objective_hint: str) -> None:
        for spec in self.model.layer_layout().layer_counts():
            parts = self.model.layer_parts(spec)
            if view in parts.supported_views():
                continue
            if view not in parts.channel_class.supported_views(parts.channel_config):
                hint = parts.channel_class.hint
            else:
                hint = (
                    "set model.bidirectional.weights=shared to run it in both directions, or use "
                    "attention"
                )
            raise ConfigError(
                f"objective {name} reads the {view} view, which {spec.mixer}+{spec.channel} "
                f"does not support; {hint}{objective_hint}"
            )


def defaults() -> ConfigDict:
    """Returns all settings with their defaults, in the form that a config file edits."""
    return to_config_dict(Settings())


def max_row_length(settings: Settings) -> int:
    """Returns the tokens of the longest row that the model processes, sources included."""
    model, length = settings.model, settings.train.seq_len
    specs = [part.objective.row_spec(model, length) for part in settings.mixture_parts()]
    return max(length, *(max(spec.target_length, spec.source_length) for spec in specs))


def resolve(settings: Settings, vocab_size: int, pairs: tuple[int, ...] = ()) -> Settings:
    """Returns the settings with the values that depend on the data.

    These are the size of the vocabulary, a learned position for each token of a row, and the
    numbers of preferences that the reference reads.

    Args:
        settings: The settings of a run.
        vocab_size: The size of the tokenizer's vocabulary.
        pairs: The number of preferences of each split; () if the data are not known.

    Raises:
        ConfigError: if model.vocab_size is below the size of the tokenizer's vocabulary, or if
            preference.pairs are not those of the data.
    """
    objectives = (part.objective for part in settings.mixture_parts())
    preference = next((x for x in objectives if isinstance(x, Preference)), None)
    if preference and pairs:
        if preference.pairs not in ((), pairs):
            raise ConfigError(
                f"preference.pairs is {preference.pairs}, but the splits of the data have {pairs} "
                "preferences; set it to ()"
            )
        settings = with_changes(settings, {"preference.pairs": pairs})
    model = settings.model
    if 0 < model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size {model.vocab_size} is below the tokenizer's {vocab_size}; set it to "
            f"{vocab_size} or 0"
        )
    positions = model.positions
    max_length = positions.max_length or (max_row_length(settings) if positions.learned else 0)
    positions = dataclasses.replace(positions, max_length=max_length)
    vocab_size = model.vocab_size or vocab_size
    model = dataclasses.replace(model, vocab_size=vocab_size, positions=positions)
    return dataclasses.replace(settings, model=model)
