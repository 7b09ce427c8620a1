"""All settings of a run: one frozen tree, composed from the configs that stand beside the code.

Every field is a flag, `--config.section.key=value`; defaults stand in the dataclasses and nowhere
else. `defaults()` is what config files start from.
"""

import dataclasses
from typing import Annotated, Literal

from ml_collections import ConfigDict

from arch import CHANNELS, ModelConfig
from arch.sequence import View
from data import RECORDS, DataConfig
from errors import ConfigError
from objectives import (
    OBJECTIVES,
    CausalLM,
    Contrastive,
    Denoising,
    MaskedLM,
    Member,
    Mixed,
    Mixture,
    Objective,
    Rows,
    members,
)
from schema import Count, Natural, Range, config, nearest
from training.checkpoint import CheckpointConfig
from training.flags import editable
from training.log import LogConfig
from training.mesh import MeshConfig
from training.optimizer import OptimizerConfig


@config
class TrainConfig:
    steps: Natural = 1000  # optimizer updates
    batch: Count = 16  # rows of a step, over all devices
    length: Count = 256  # tokens of a row
    accumulate: Count = 1  # microbatches of a step
    patience: Natural = 1800  # seconds without a step until a run counts as hung; 0: for ever
    compile_cache: str = ""  # folder that keeps compiled programs between runs; "": none


@config
class EvalConfig:
    every: Natural = 0  # steps between judgements on valid; 0: only at the end
    batch: Count = 32  # rows at a time
    tasks: tuple[str, ...] = ()  # at the end; (): those of the objective
    splits: tuple[Literal["valid", "test"], ...] = ("valid", "test")  # that tasks read
    prompt: str = "The "  # what the sample continues
    sample: Natural = 200  # tokens of the sample


@config
class DebugConfig:
    fault: str = ""  # rehearse a failure, as "kill@save:5" (training/faults.py)
    nans: bool = False  # name the operation that makes one, by computing its step again


@config
class Settings:
    seed: Annotated[int, Range(low=0, high=2**63 - 1)] = 0
    model: ModelConfig = ModelConfig()
    objective: Literal["causal_lm", "masked_lm", "denoising", "contrastive", "mixture"] = (
        "causal_lm"
    )
    causal_lm: CausalLM = CausalLM()
    masked_lm: MaskedLM = MaskedLM()
    denoising: Denoising = Denoising()
    contrastive: Contrastive = Contrastive()
    mixture: Mixture = Mixture()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    debug: DebugConfig = DebugConfig()

    def check(self) -> None:
        positions, T = self.model.positions, longest(self)
        if positions.learned and 0 < positions.length < T:
            raise ConfigError(
                f"rows have {T} tokens (train.length {self.train.length}), longer than "
                f"model.positions.length {positions.length}; set either to the other"
            )
        if self.train.batch % self.train.accumulate:
            near = max(self.train.batch // self.train.accumulate, 1) * self.train.accumulate
            raise ConfigError(
                f"train.batch {self.train.batch} is not a multiple of train.accumulate "
                f"{self.train.accumulate}; nearest: {near}"
            )
        for member in self.members():
            name = member.name or self.objective
            rows = member.objective.rows(self.model, T)
            self._check_view(name, rows.view, rows.remedy)
            self._check_source(name, rows)
            if not member.objective.additive and self.train.batch < 2:
                raise ConfigError(
                    f"train.batch {self.train.batch} leaves objective {name} nothing to compare a "
                    "row with; nearest: 2"
                )

    def chosen(self) -> Objective:
        """The objective's own section, or its mixture's."""
        sections: dict[str, Objective] = {name: vars(self)[name] for name in OBJECTIVES}
        if self.objective != "mixture":
            return sections[self.objective]
        for name, _ in self.mixture.parts:
            if name not in sections:
                raise ConfigError(f"mixture.parts has {name!r}; {nearest(name, sections)}")
        return Mixed(tuple(Member(n, sections[n], scale) for n, scale in self.mixture.parts))

    def members(self) -> tuple[Member, ...]:
        """The parts of a mixture, or the one objective."""
        return members(self.chosen())

    @property
    def rows(self) -> Rows:
        """What a row is made of; of a mixture, of its first part."""
        return self.chosen().rows(self.model, self.train.length)

    @property
    def reads(self) -> tuple[bool, ...]:
        """The kinds of store that it takes: False: of documents, True: of records."""
        kinds = [m.objective.rows(self.model, self.train.length).reads for m in self.members()]
        return tuple(sorted({kind == "records" for kind in kinds}))

    def _check_source(self, name: str, rows: Rows) -> None:
        if self.data.weighs and rows.reads != "records" and not rows.in_place:
            raise ConfigError(
                f"objective {name} rearranges text, so that data.chat and data.weight cannot weigh "
                "it; leave them empty, or use causal_lm or masked_lm"
            )
        if rows.reads == "records" and self.data.source not in RECORDS:
            raise ConfigError(
                f"objective {name} reads texts that belong together, which data.source "
                f"{self.data.source!r} does not have; use {' or '.join(RECORDS)}, or "
                "contrastive.positives=dropout with model.block.dropout=0.1"
            )

    def _check_view(self, name: str, view: View, remedy: str) -> None:
        for e in self.model.plan().entries():
            if view in self.model.able(e):
                continue
            if view not in CHANNELS[e.channel].views(self.model.part(*e[2:])):
                way = CHANNELS[e.channel].remedy
            else:
                way = "set model.directions.weights=shared to run it both ways, or use attention"
            raise ConfigError(
                f"objective {name} reads the {view} view, which {e.mixer}+{e.channel} "
                f"cannot; {way}{remedy}"
            )


def defaults() -> ConfigDict:
    """All settings as a config file edits them."""
    return editable(Settings())


def longest(settings: Settings) -> int:
    """Tokens of the longest row that a stack sees, of sources and of what is made from them."""
    model, length = settings.model, settings.train.length
    rows = [member.objective.rows(model, length) for member in settings.members()]
    return max(length, *(max(one.tokens, one.source) for one in rows))


def resolved(settings: Settings, vocab: int) -> Settings:
    """With what the data decides: `vocab` ids, and a position for every token of a row."""
    model = settings.model
    if 0 < model.vocab < vocab:
        raise ConfigError(
            f"model.vocab {model.vocab} is below the tokenizer's {vocab}; set it to {vocab} or 0"
        )
    positions = model.positions
    length = positions.length or (longest(settings) if positions.learned else 0)
    positions = dataclasses.replace(positions, length=length)
    model = dataclasses.replace(model, vocab=model.vocab or vocab, positions=positions)
    return dataclasses.replace(settings, model=model)
