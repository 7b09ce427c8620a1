"""The backbone: an embedding, a stack of `mixer+channel` blocks, and an output head.

`Mixer` and `Channel` in `arch/part.py` are the interfaces of the two parts of a block. `MIXERS` and
`CHANNELS` in `arch/config.py` list the parts by the names that layer patterns use.

**Stacked parameters.** The stack scans over the repeats of its pattern. It makes the modules of one
layer of the pattern under `jax.vmap`, one per repeat, so each parameter gets a leading axis
[rep ...], in its value and its layout. Three rules follow. A constructor must be traceable: all
attributes besides parameters depend on `D` and `cfg` only. In a call, the scan has removed the
leading axis, so parameters have the shapes with which they were made. `init_state` is called on the
stacked module and must return the state of one repeat: it takes sizes from `cfg` or from attributes
of the constructor, or counts axes of a parameter from the end (`w.shape[-1]`). The stack adds
the leading axis to the state.

Losses, data and devices are not part of the backbone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from arch.config import ModelConfig
from arch.layers.dropout import maybe_split_key
from arch.layers.embedding import TABLE_STD, Embedding, HeadWeights, OutputHead
from arch.layers.joint_embedding import JointEmbedding
from arch.layers.pooler import Pooler
from arch.sequence import SequenceInfo
from arch.sharding import scale_readouts
from arch.stack import Stack
from arch.stack_state import StackState
from arch.vision import VisionTower, insert_images
from arch.weighted_sum import AuxMetrics


class Model(nnx.Module):
    """A model `model(tokens, seq) -> (hidden, aux, state)`; `logits(hidden)` gives scores."""

    def __init__(self, config: ModelConfig, *, key: Array):
        D, V = config.width, config.padded_vocab_size if config.depth else 0
        keys = jax.random.split(key, 4)
        embed, norm = config.embed, config.norm
        self.config = config
        if config.depth:
            self.embed = Embedding(V, D, embed, config.positions, norm, keys[0])
        has_encoder = config.encoder.depth > 0
        self.encoder = Stack(config, config.encoder_layout(), key=keys[1]) if has_encoder else None
        self.stack = Stack(
            config, config.layer_layout(), key=keys[2], has_cross_attention=has_encoder
        )
        # Under muP the first logits of an untied table are 0 at all widths (arXiv:2203.03466, D.2).
        std = 0.0 if config.parametrization == "mup" else TABLE_STD
        if config.depth:
            self.head = OutputHead(V, D, config.head, embed, norm, key=keys[3], table_std=std)
        has_pooler = config.pooler.kind != "none"
        pooler_key = jax.random.fold_in(key, 4)
        self.pooler = Pooler(D, config.pooler, key=pooler_key) if has_pooler else None
        vision, vision_key = config.vision, jax.random.fold_in(key, 5)
        self.vision = VisionTower(config, key=vision_key) if vision.depth else None
        has_joint = vision.depth > 0 and vision.embed_dim > 0
        widths = vision.width or D, D, vision.embed_dim
        joint_key = jax.random.fold_in(key, 6)
        self.joint = JointEmbedding(*widths, key=joint_key) if has_joint else None
        if config.parametrization == "mup":
            # Variance 1 / (in m) with m = width / base_width (arXiv:2203.03466, table 8).
            scale_readouts(self, (config.base_width / D) ** 0.5)
        if config.dtype == "float64":
            _to_float64(self)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        seq: SequenceInfo,
        *,
        state: StackState | None = None,
        source: tuple[Int[Array, "B S"], SequenceInfo] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], AuxMetrics, StackState | None]:
        """Computes the hidden vectors after the final norm.

        Args:
            tokens: token ids; for an encoder-decoder, those of the decoder.
            seq: the structure of the rows, and their images.
            state: a decoding state from `init_state` or an earlier call; None outside decoding.
            source: token ids and structure of the encoder's rows. An encoder-decoder needs it,
                except with a state from a call that had it.
            key: the key of dropout and jitter; None means neither.

        Returns:
            The hidden vectors, the channels' reports with one entry per layer ([layers] by name,
            the encoder's under "encoder/", the vision stack's under "vision/"), and the new state
            (None without a state).

        Raises:
            ValueError: if a source is missing, or given without an encoder, or if the model has no
                projector for images.
        """
        keys, aux, memory = maybe_split_key(key, 4), AuxMetrics(), None
        if self.encoder is None and source is not None:
            raise ValueError("a source needs model.encoder.depth > 0")
        if self.encoder is not None and source is None and state is None:
            raise ValueError("a model with an encoder needs a source; give `source`")
        if self.encoder is not None and source is not None:
            encoded, encoder_aux = self.encode(*source, key=keys[0])
            aux = {f"encoder/{name}": value for name, value in encoder_aux.items()}
            memory = encoded, source[1]
        with jax.named_scope("embed"):
            x = self.embed(tokens, seq, jnp.dtype(self.config.dtype), keys[1])
        if seq.images is not None:
            x, vision_aux = self._insert_images(x, tokens, seq.images, keys[3])
            aux, seq = aux | vision_aux, dataclasses.replace(seq, images=None)
        x, stack_aux, new_state = self.stack(x, seq, state=state, memory=memory, key=keys[2])
        return x, aux | stack_aux, new_state

    def encode(
        self, tokens: Int[Array, "B S"], seq: SequenceInfo, *, key: Array | None = None
    ) -> tuple[Float[Array, "B S D"], AuxMetrics]:
        """Returns the encoder's hidden vectors after its final norm, and its channels' reports."""
        keys = maybe_split_key(key, 2)
        with jax.named_scope("encode"):
            x = self.embed(tokens, seq, jnp.dtype(self.config.dtype), keys[0])
            x, aux, _ = self.encoder(x, seq, key=keys[1])
        return x, aux

    def require_vision(self) -> VisionTower:
        """Returns the vision stack.

        Raises:
            ValueError: if the model reads no images.
        """
        if self.vision is None:
            raise ValueError("the model reads no images; set model.vision.depth")
        return self.vision

    def require_joint(self) -> JointEmbedding:
        """Returns the projections by which images are compared with texts.

        Raises:
            ValueError: if the model does not compare them.
        """
        if self.joint is None:
            raise ValueError("the model compares no images with texts; set model.vision.embed_dim")
        return self.joint

    def _insert_images(
        self,
        x: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
        images: Num[Array, "B height width channels"],
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        if self.vision is None or not self.config.vision.n_prefix_tokens:
            raise ValueError("images enter a text stack by model.vision.projector; set it")
        vectors, aux = self.vision(images, key=key)
        patches = self.vision.project(vectors)
        return insert_images(x, tokens, self.config.vision.token_id, patches), aux

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Computes the logits in at least float32.

        The logits of padding ids are the lowest finite number.
        """
        head = self.head_weights()
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        table, hidden = head.table.astype(hidden.dtype), self.features(hidden)
        y = head.scale * jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=wide)
        y = y if head.bias is None else y + head.bias
        y = head.softcap * jnp.tanh(y / head.softcap) if head.softcap else y
        return jnp.where(jnp.arange(y.shape[-1]) < head.vocab_size, y, jnp.finfo(wide).min)

    def features(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T features"]:
        """Returns the vectors that the head multiplies by its table: `hidden`, or its transform."""
        return self.head.features(hidden)

    def head_weights(self) -> HeadWeights:
        """Returns the weights that map `features` to logits."""
        cfg = self.config.head
        table = self.embed.table if cfg.tied else self.head.table
        bias = self.head.bias[...] if cfg.bias else None
        scale = self.config.logit_scale
        return HeadWeights(table[...], bias, self.config.vocab_size, scale, cfg.logit_softcap)

    def init_state(self, batch_size: int, max_length: int, *, source_length: int = 0) -> StackState:
        """Returns an empty state for decoding.

        Args:
            batch_size: the number of rows.
            max_length: the maximum tokens per row, those of the prompt included.
            source_length: the tokens per row of the encoder; 0 without an encoder.
        """
        return self.stack.init_state(batch_size, max_length, source_length)


def _to_float64(model: nnx.Module) -> None:
    for param in jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        param.set_value(param[...].astype(jnp.float64))
