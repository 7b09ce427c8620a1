"""The settings of a model and the tables of the parts that layer patterns name."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax

from arch.block import BlockConfig
from arch.canon import check_points
from arch.channels.mlp import Mlp, MlpConfig
from arch.channels.moe import MoE
from arch.channels.moe_config import MoeConfig, balances_batch
from arch.channels.no_channel import NoChannel
from arch.layer_parts import LayerParts, merge_aux_losses
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.patches import VisionConfig
from arch.layers.pooler import PoolerConfig
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import Attention, AttentionConfig
from arch.mixers.attention_config import relative_heads
from arch.mixers.combined.bidirectional import BidirectionalConfig, MixerSpec
from arch.mixers.combined.side_by_side import SideBySide, SideBySideConfig, SideBySideParts
from arch.mixers.delta_product import DeltaProduct, DeltaProductConfig
from arch.mixers.gated_conv import GatedConv, GatedConvConfig
from arch.mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from arch.mixers.gdn2 import Gdn2, Gdn2Config
from arch.mixers.gla import Gla, GlaConfig
from arch.mixers.hgrn2 import Hgrn2, Hgrn2Config
from arch.mixers.kda import Kda, KdaConfig
from arch.mixers.latent_attention import LatentAttention, LatentAttentionConfig
from arch.mixers.lightning import Lightning, LightningConfig
from arch.mixers.lstm import Lstm, LstmConfig
from arch.mixers.mamba1 import Mamba1, Mamba1Config
from arch.mixers.mamba2 import Mamba2, Mamba2Config
from arch.part import Channel, Mixer
from arch.pattern import LayerLayout, LayerSpec, make_layout, parse_layer
from arch.sequence import ALL_VIEWS, View, intersect_views
from errors import ConfigError
from settings.changes import with_changes
from settings.types import NonNegativeInt, PositiveInt, config, did_you_mean

# The interfaces are in arch/part.py. To add a part, write its file, import it here, and add it to
# the table and, if it has settings, to ModelConfig under the same name.
MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "local_attention": Attention,
    "latent_attention": LatentAttention,
    "mamba1": Mamba1,
    "mamba2": Mamba2,
    "gated_deltanet": GatedDeltaNet,
    "kda": Kda,
    "gdn2": Gdn2,
    "delta_product": DeltaProduct,
    "gla": Gla,
    "hgrn2": Hgrn2,
    "lightning": Lightning,
    "lstm": Lstm,
    "gated_conv": GatedConv,
}
CHANNELS: dict[str, type[Channel]] = {"mlp": Mlp, "moe": MoE, "none": NoChannel}


@config
class EncoderConfig:
    """The encoder: a bidirectional stack over the source, to which the decoder attends."""

    depth: NonNegativeInt = 0  # Number of layers of the encoder; 0: no encoder.
    # Pattern of mixer+channel blocks, repeated over the depth.
    layers: tuple[str, ...] = ("attention+mlp",)
    first_layers: tuple[str, ...] = ()  # Blocks before the pattern.


@config
class ModelConfig:
    """A model: its size, its layers and the settings of every part."""

    width: PositiveInt = 256  # Width of the residual stream (D).
    depth: NonNegativeInt = 4  # Number of layers (L); 0: a vision stack alone.
    # Pattern of mixer+channel blocks, repeated over the depth.
    layers: tuple[str, ...] = ("attention+mlp",)
    first_layers: tuple[str, ...] = ()  # Blocks before the pattern.
    # Scales and rates as they are set, or muP: those set are for base_width, and other widths get
    # theirs by the roles of the parameters (arXiv:2203.03466).
    parametrization: Literal["standard", "mup"] = "standard"
    base_width: PositiveInt = 256  # Width at which muP equals the standard parametrization.
    vocab_size: NonNegativeInt = 0  # Number of token ids; 0: the tokenizer's.
    vocab_multiple: PositiveInt = 128  # Pad the rows of the token table to a multiple of this.
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # Dtype of the computation.
    # Recomputation in the backward pass: none, all but products with weights (dots), or everything
    # (full); offload: as dots, with these products in the host's memory.
    remat: Literal["none", "dots", "full", "offload"] = "none"
    scan: bool = True  # Scan over the repeats; False unrolls four layers at a time.
    final_norm: bool = True  # Apply a norm after the last block.
    encoder: EncoderConfig = EncoderConfig()
    vision: VisionConfig = VisionConfig()
    embed: EmbedConfig = EmbedConfig()
    positions: PositionsConfig = PositionsConfig()
    norm: NormConfig = NormConfig()
    block: BlockConfig = BlockConfig()
    head: HeadConfig = HeadConfig()
    pooler: PoolerConfig = PoolerConfig()
    bidirectional: BidirectionalConfig = BidirectionalConfig()
    attention: AttentionConfig = AttentionConfig()
    local_attention: AttentionConfig = AttentionConfig(window=256)
    latent_attention: LatentAttentionConfig = LatentAttentionConfig()
    # Attention of the decoder to the encoder.
    cross_attention: AttentionConfig = AttentionConfig(position_encoding="none")
    mamba1: Mamba1Config = Mamba1Config()
    mamba2: Mamba2Config = Mamba2Config()
    gated_deltanet: GatedDeltaNetConfig = GatedDeltaNetConfig()
    kda: KdaConfig = KdaConfig()
    gdn2: Gdn2Config = Gdn2Config()
    delta_product: DeltaProductConfig = DeltaProductConfig()
    gla: GlaConfig = GlaConfig()
    hgrn2: Hgrn2Config = Hgrn2Config()
    lightning: LightningConfig = LightningConfig()
    lstm: LstmConfig = LstmConfig()
    gated_conv: GatedConvConfig = GatedConvConfig()
    # Mixers side by side in one layer, as attention&mamba2+mlp.
    side_by_side: SideBySideConfig = SideBySideConfig()
    mlp: MlpConfig = MlpConfig()
    moe: MoeConfig = MoeConfig()
    variants: Mapping[str, Mapping] = dataclasses.field(
        default_factory=dict
    )  # Named variants of a part: the settings that differ; those of its layer under "block".

    def check(self) -> None:
        """Checks that all parts fit the model.

        Raises:
            ConfigError: if a part, a block, the dtype or the encoder does not fit.
        """
        self.tp_dims()
        self.aux_losses()
        self.balances_batch()
        self.num_relative_heads()
        points = {point for parts in self.distinct_parts() for point in parts.canon_points()}
        check_points(self.block.canon, points)
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ConfigError(
                "model.dtype is 'float64', which needs jax_enable_x64; set it, or use 'float32'"
            )
        if self.encoder.depth:
            self._check_encoder()
        if self.vision.depth:
            self._check_vision()
        elif not self.depth:
            raise ConfigError("model.depth 0 needs model.vision.depth; nearest valid value: 1")
        blocks = [self.block_config(layer) for layer in self.layer_layout().layer_counts()]
        if self.block.skip_first_norm and (not self.first_layers or blocks[0].wiring != "pre"):
            raise ConfigError(
                "model.block.skip_first_norm needs block.wiring 'pre' and the first block in "
                "model.first_layers, as ('attention+mlp',)"
            )

    @property
    def logit_scale(self) -> float:
        """The factor of the logits, under muP over the growth of the table's rows.

        That is arXiv:2203.03466, table 8, for tied and untied tables. A factorized table does not
        grow with the width.
        """
        grows = self.parametrization == "mup" and not self.embed.factorized_width
        return self.head.scale * (self.base_width / self.width if grows else 1.0)

    def as_standard(self) -> "ModelConfig":
        """Returns the model of the standard parametrization that computes the same function."""
        default = type(self)()
        return dataclasses.replace(
            self,
            parametrization="standard",
            base_width=default.base_width,
            head=dataclasses.replace(self.head, scale=self.logit_scale),
        )

    def layer_layout(self) -> LayerLayout:
        """Returns the layout of the decoder, which is the only stack without an encoder."""
        if not self.depth:
            return LayerLayout((), (), 0, ())
        return self._make_layout(self.first_layers, self.layers, self.depth, "model")

    def encoder_layout(self) -> LayerLayout:
        """Returns the layout of the encoder."""
        cfg = self.encoder
        return self._make_layout(cfg.first_layers, cfg.layers, cfg.depth, "model.encoder")

    def vision_stack(self) -> "ModelConfig":
        """Returns the settings of the vision stack, as of a model that is this stack alone."""
        cfg = self.vision
        base = dataclasses.replace(
            self,
            width=cfg.width or self.width,
            depth=cfg.depth,
            layers=cfg.layers,
            first_layers=cfg.first_layers,
            final_norm=cfg.final_norm,
            encoder=EncoderConfig(),
            vision=VisionConfig(),
            block=dataclasses.replace(self.block, skip_first_norm=False),
        )
        mixers = ("attention", "local_attention", "latent_attention")
        base = with_changes(base, {f"{name}.position_encoding": "none" for name in mixers})
        return with_changes(base, cfg.parts, "model.vision.parts")

    def layer_specs(self) -> set[LayerSpec]:
        """Returns the distinct blocks of both stacks."""
        return {
            *self.layer_layout().layer_counts(),
            *(self.encoder_layout().layer_counts() if self.encoder.depth else ()),
        }

    def distinct_parts(self) -> list[LayerParts]:
        """Returns the parts of each distinct block of both stacks, sorted by name."""
        return [self.layer_parts(layer) for layer in sorted(self.layer_specs())]

    def stack_parts(self, layout: LayerLayout) -> list[tuple[LayerParts, int]]:
        """Returns the parts of each distinct block of a stack, and how often it is used."""
        return [(self.layer_parts(layer), uses) for layer, uses in layout.layer_counts().items()]

    def layer_parts(self, layer: LayerSpec) -> LayerParts:
        """Returns the classes and the settings of the parts of a layer.

        Raises:
            ConfigError: if `model.variants` does not have a variant, or if variants differ.
        """
        mixers = tuple(
            MixerSpec(MIXERS[name], self.part_config(name, variant), self.bidirectional)
            for name, variant in layer.mixers()
        )
        mixer = mixers[0]
        if len(mixers) > 1:
            names = tuple(name for name, _ in layer.mixers())
            side_by_side = SideBySideParts(names, mixers, self.side_by_side)
            mixer = MixerSpec(SideBySide, side_by_side, self.bidirectional)
        return LayerParts(
            spec=layer,
            D=self.width,
            block=self.block_config(layer),
            mixer=mixer,
            channel_class=CHANNELS[layer.channel],
            channel_config=self.part_config(layer.channel, layer.channel_variant),
        )

    def part_config(self, name: str, variant: str = "") -> object:
        """Returns the config of a part or of its variant; None for a part without settings.

        Raises:
            ConfigError: if `model.variants` does not have the variant.
        """
        sections = {field.name for field in dataclasses.fields(self)}
        base = getattr(self, name) if name in sections else None
        if not variant:
            return base
        if variant not in self.variants:
            hint = did_you_mean(variant, self.variants)
            raise ConfigError(f"model.layers has {name}@{variant}; model.variants: {hint}")
        changes = {k: v for k, v in self.variants[variant].items() if k != "block"}
        return with_changes(base, changes, f"model.variants.{variant}") if changes else base

    def block_config(self, layer: LayerSpec) -> BlockConfig:
        """Returns the residual connections and norms of a layer.

        They are those of `block`, with the changes under "block" in the variants of its parts.

        Raises:
            ConfigError: if two variants differ, or state something else than wiring and norms.
        """
        blocks = {}
        for _, variant in layer.parts():
            changes = self.variants.get(variant, {}).get("block", {})
            path = f"model.variants.{variant}.block"
            if not isinstance(changes, Mapping) or not {*changes} <= {"wiring", "norms"}:
                raise ConfigError(
                    f"{path} is {changes!r}, must have only wiring and norms; set other settings "
                    "of all blocks in model.block"
                )
            if changes:
                blocks[variant] = with_changes(self.block, changes, path)
        if len({*blocks.values()}) > 1:
            raise ConfigError(
                f"model.variants {' and '.join(blocks)} of one layer differ in block; state it in "
                "one of them"
            )
        return next(iter(blocks.values()), self.block)

    def tp_dims(self) -> dict[str, int]:
        """Returns the sizes that tensor and expert parallelism split, by setting."""
        dims: dict[str, int] = {}
        for layer in self.distinct_parts():
            for name, variant in layer.spec.parts():
                part = (MIXERS | CHANNELS)[name]
                part_dims = part.tp_dims(self.width, self.part_config(name, variant))
                section = f"{name}@{variant}" if variant else name
                dims |= {f"{section}.{key}": size for key, size in part_dims.items()}
        if self.encoder.depth:
            part_dims = Attention.tp_dims(self.width, self.cross_attention)
            dims |= {f"cross_attention.{key}": size for key, size in part_dims.items()}
        if self.vision.depth:
            dims |= {f"vision.{key}": n for key, n in self.vision_stack().tp_dims().items()}
        return dims

    def supported_views(self) -> dict[View, str]:
        """Returns the views that all layers support, with "full" or "causal" for each."""
        views = ALL_VIEWS
        for layer in self.layer_layout().layer_counts():
            views = intersect_views(views, self.layer_parts(layer).supported_views())
        return views

    def aux_losses(self) -> dict[str, float]:
        """Returns the coefficient of each loss term that channels report.

        Raises:
            ConfigError: if two variants of a channel give a term different coefficients.
        """
        vision_parts = self.vision_stack().distinct_parts() if self.vision.depth else []
        return merge_aux_losses([*self.distinct_parts(), *vision_parts])

    def balances_batch(self) -> bool:
        """Whether a balance loss of experts is over the whole batch (`moe.balance_over`).

        Raises:
            ConfigError: if it is, and layers with experts differ in this or in their number.
        """
        if self.vision.depth and self.vision_stack().balances_batch():
            return True
        return balances_batch(layer.channel_config for layer in self.distinct_parts())

    def num_relative_heads(self) -> int:
        """Returns the number of heads of the relative position table; 0: no layer uses it.

        Raises:
            ConfigError: if attentions that share the table differ in their number of heads.
        """
        pairs = [pair for layer in sorted(self.layer_specs()) for pair in layer.mixers()]
        return relative_heads(self.part_config(*pair) for pair in pairs)

    @property
    def padded_vocab_size(self) -> int:
        """The number of rows of the embedding table, which is padded to `vocab_multiple`.

        Raises:
            ConfigError: if `vocab_size` is 0, which only a run replaces by the tokenizer's.
        """
        if not self.vocab_size:
            raise ConfigError(
                "model.vocab_size is 0 outside a run; set it to the number of token ids"
            )
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def _make_layout(
        self, first: tuple[str, ...], layers: tuple[str, ...], depth: int, section: str
    ) -> LayerLayout:
        def parse(texts: tuple[str, ...], key: str) -> list[LayerSpec]:
            return [parse_layer(text, f"{section}.{key}", MIXERS, CHANNELS) for text in texts]

        return make_layout(parse(first, "first_layers"), parse(layers, "layers"), depth, section)

    def _check_vision(self) -> None:
        if self.encoder.depth:
            raise ConfigError("model.vision.depth needs one text stack; set model.encoder.depth=0")
        tower = self.vision_stack()
        tower._require_both_sides("model.vision", tower.layer_layout())

    def _require_both_sides(self, section: str, layout: LayerLayout) -> None:
        for layer in layout.layer_counts():
            if "bidirectional" not in self.layer_parts(layer).supported_views():
                raise ConfigError(
                    f"{section} is bidirectional, which {layer.mixer}+{layer.channel} does not "
                    "support; set model.bidirectional.weights=shared, or use another part"
                )

    def _check_encoder(self) -> None:
        if any(self.block_config(layer).wiring == "parallel" for layer in self.layer_specs()):
            raise ConfigError(
                "model.block.wiring 'parallel' does not support cross-attention; use 'pre'"
            )
        cross = self.cross_attention
        if cross.position_encoding != "none" or cross.window or cross.value_residual:
            raise ConfigError(
                "model.cross_attention must have position_encoding 'none', window 0 and "
                "value_residual False, because source and target have different positions"
            )
        self._require_both_sides("model.encoder", self.encoder_layout())
