"""The backbone's settings, and the tables of parts that its patterns name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from arch.attention import Attention, AttentionConfig
from arch.block import BlockConfig
from arch.directions import DirectionsConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.gated_conv import GatedConv, GatedConvConfig
from arch.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from arch.lstm import Lstm, LstmConfig
from arch.mamba1 import Mamba1, Mamba1Config
from arch.mamba2 import Mamba2, Mamba2Config
from arch.mlp import Mlp, MlpConfig
from arch.moe import MoE, MoeConfig
from arch.norms import NormConfig
from arch.nothing import Nothing
from arch.pattern import Entry, Plan, parse, plan
from arch.pooler import PoolerConfig
from arch.positions import PositionsConfig
from arch.sequence import EVERYWHERE, View
from errors import ConfigError
from schema import Count, Natural, changed, config, nearest

# To add a part: write its file, import it, name it here and (if it has settings) in ModelConfig.
MIXERS: dict[str, Any] = {
    "attention": Attention,
    "local_attention": Attention,
    "mamba1": Mamba1,
    "mamba2": Mamba2,
    "gated_deltanet": GatedDeltaNet,
    "lstm": Lstm,
    "gated_conv": GatedConv,
}
CHANNELS: dict[str, Any] = {"mlp": Mlp, "moe": MoE, "none": Nothing}


@config
class EncoderConfig:
    """A stack of its own that reads the source from both sides; the decoder attends to it."""

    depth: Natural = 0  # 0: no encoder
    layers: tuple[str, ...] = ("attention+mlp",)  # tiled over the depth
    first: tuple[str, ...] = ()  # layers before the repeats


@config
class ModelConfig:
    width: Count = 256  # D
    depth: Count = 4  # L
    layers: tuple[str, ...] = ("attention+mlp",)  # tiled over the depth
    first: tuple[str, ...] = ()  # layers before the repeats
    vocab: Natural = 0  # ids; 0: the tokenizer's
    vocab_multiple: Count = 128  # rows of the table are padded to a multiple of this
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of computation
    # What the backward pass computes again; offload: dots, with the products in the host's memory.
    remat: Literal["none", "dots", "full", "offload"] = "none"
    scan: bool = True  # over repeats; False unrolls them, to the same parameters
    final_norm: bool = True
    encoder: EncoderConfig = EncoderConfig()
    embed: EmbedConfig = EmbedConfig()
    positions: PositionsConfig = PositionsConfig()
    norm: NormConfig = NormConfig()
    block: BlockConfig = BlockConfig()
    head: HeadConfig = HeadConfig()
    pooler: PoolerConfig = PoolerConfig()
    directions: DirectionsConfig = DirectionsConfig()
    attention: AttentionConfig = AttentionConfig()
    local_attention: AttentionConfig = AttentionConfig(window=256)
    cross: AttentionConfig = AttentionConfig(position="none")  # of a decoder to its encoder
    mamba1: Mamba1Config = Mamba1Config()
    mamba2: Mamba2Config = Mamba2Config()
    gated_deltanet: GatedDeltaNetConfig = GatedDeltaNetConfig()
    lstm: LstmConfig = LstmConfig()
    gated_conv: GatedConvConfig = GatedConvConfig()
    mlp: MlpConfig = MlpConfig()
    moe: MoeConfig = MoeConfig()
    variants: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)  # name: differences

    def check(self) -> None:
        self.cuts()
        self.losses()
        self.relative_heads()
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ConfigError("model.dtype is 'float64', which needs jax_enable_x64; or 'float32'")
        if self.encoder.depth:
            self._check_encoder()
        if self.block.bare_first and (self.block.wiring != "pre" or not self.first):
            raise ConfigError(
                "model.block.bare_first needs block.wiring 'pre' and the first block by itself in "
                "model.first, as ('attention+mlp',)"
            )

    def plan(self) -> Plan:
        """Of the decoder, or the only stack."""
        return self._plan(self.first, self.layers, self.depth, "model")

    def encoder_plan(self) -> Plan:
        cfg = self.encoder
        return self._plan(cfg.first, cfg.layers, cfg.depth, "model.encoder")

    def entries(self) -> set[Entry]:
        """The kinds of block that there are, in both stacks."""
        return {
            *self.plan().entries(),
            *(self.encoder_plan().entries() if self.encoder.depth else ()),
        }

    def part(self, name: str, variant: str = "") -> Any:
        """The config of a part or of a variant of it; None for a part without settings."""
        known = {field.name for field in dataclasses.fields(self)}
        base = getattr(self, name) if name in known else None
        if not variant:
            return base
        if variant not in self.variants:
            hint = nearest(variant, self.variants)
            raise ConfigError(f"model.layers has {name}@{variant}; model.variants: {hint}")
        return changed(base, self.variants[variant], f"model.variants.{variant}")

    def cuts(self) -> dict[str, int]:
        """What tensor parallelism cuts along, by setting; ConfigError if a part does not fit."""
        found: dict[str, int] = {}
        for e in sorted(self.entries()):
            for table, name, variant in ((MIXERS, *e[:2]), (CHANNELS, *e[2:])):
                own = table[name].cuts(self.width, self.part(name, variant))
                kind = f"{name}@{variant}" if variant else name
                found |= {f"{kind}.{key}": size for key, size in own.items()}
        if self.encoder.depth:
            own = Attention.cuts(self.width, self.cross)
            found |= {f"cross.{key}": size for key, size in own.items()}
        return found

    def views(self) -> dict[View, str]:
        """What the model can do under each view it is able to take."""
        able = EVERYWHERE
        for e in self.plan().entries():
            able = _both(able, self.able(e))
        return able

    def able(self, e: Entry) -> dict[View, str]:
        """What one kind of block can do under each view."""
        mixer = MIXERS[e.mixer].views(self.part(*e[:2]))
        if "both" not in mixer and self.directions.weights != "none":
            mixer = {**mixer, "both": "full"}
        return _both(mixer, CHANNELS[e.channel].views(self.part(*e[2:])))

    def losses(self) -> dict[str, float]:
        """The coefficient of every loss term that channels report."""
        found: dict[str, float] = {}
        for e in sorted(self.entries()):
            for name, coefficient in CHANNELS[e.channel].losses(self.part(*e[2:])).items():
                if found.setdefault(name, coefficient) != coefficient:
                    raise ConfigError(
                        f"model.variants give {name} the coefficients {found[name]} and "
                        f"{coefficient}, must be equal in all layers"
                    )
        return found

    def relative_heads(self) -> int:
        """Heads of the table of relative positions that attentions share; 0: none asks for it."""
        parts = [self.part(*e[:2]) for e in sorted(self.entries())]
        asking = [p for p in parts if isinstance(p, AttentionConfig) and p.position == "relative"]
        heads = sorted({part.heads for part in asking})
        if len(heads) > 1:
            raise ConfigError(
                f"attentions with position 'relative' share a table, their heads are {heads}, "
                f"must be equal; nearest: {heads[-1]}"
            )
        return heads[0] if heads else 0

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        if not self.vocab:
            raise ConfigError("model.vocab is 0 outside a run; give the number of ids")
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    def _plan(
        self, first: tuple[str, ...], layers: tuple[str, ...], depth: int, where: str
    ) -> Plan:
        def parsed(texts: tuple[str, ...], key: str) -> list[Entry]:
            return [parse(text, f"{where}.{key}", MIXERS, CHANNELS) for text in texts]

        return plan(parsed(first, "first"), parsed(layers, "layers"), depth, where)

    def _check_encoder(self) -> None:
        if self.block.wiring == "parallel":
            raise ConfigError(
                "model.block.wiring 'parallel' has no place for cross-attention; use 'pre'"
            )
        if self.cross.position != "none" or self.cross.window:
            raise ConfigError(
                "model.cross must have position 'none' and window 0: the source has other positions"
            )
        for e in self.encoder_plan().entries():
            if "both" not in self.able(e):
                raise ConfigError(
                    f"model.encoder reads the source from both sides, which {e.mixer}+{e.channel} "
                    "cannot; set model.directions.weights=shared, or another part"
                )


def _both(a: Mapping[View, str], b: Mapping[View, str]) -> dict[View, str]:
    """What can be done where both have to."""
    return {view: "full" if a[view] == b[view] == "full" else "causal" for view in a if view in b}
