"""Contrastive learning: texts of a pair get close vectors, other texts get distant vectors.

A row is several texts, each read by itself: an anchor, its match, and hard negatives if there are
any. Each text becomes one vector (pooled, projected if so configured, of length 1). The loss is
InfoNCE over the whole batch, however the batch is divided into microbatches or among devices. Equal
texts are never negatives of each other. Without text pairs, the match of a text is the text itself
under another dropout mask (SimCSE, arXiv:2104.08821), or the two halves of a text are a pair.
Further hard negatives may be mined (`objectives/mining.py`). The anchor may be an image (CLIP,
arXiv:2103.00020): its vector is that of the model's vision stack.
"""

import dataclasses
import functools
import hashlib
import math
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from arch import ModelConfig, SequenceInfo
from arch.part_cost import PartCost, TermFlops
from arch.vision import pooled_cost
from arch.weighted_sum import AuxMetrics, WeightedSum
from errors import ConfigError
from objectives.infonce import alignment, hard_negative_cosine, info_nce, negative_mask, uniformity
from objectives.mining import HardNegativeMiner, MiningConfig
from objectives.pooling import (
    ContrastiveHead,
    Pooling,
    Projection,
    clip_keep_inward_gradient,
    l2_normalize,
    pool,
    project,
)
from objectives.token_loss import masked_sum
from objectives.token_sets import TokenizerLike, require_single_stack
from objectives.types import (
    Embeddings,
    LossTerm,
    Metrics,
    RowFn,
    RowKind,
    RowSpec,
    Trainable,
    aux_loss_terms,
)
from settings.types import NonNegativeInt, Range, config

# Logits are at most 100 times a cosine, as in CLIP.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 10.0
Positives = Literal["pairs", "dropout", "split_text", "images"]
Temperature = Annotated[float, Range(low=MIN_TEMPERATURE, high=MAX_TEMPERATURE)]


@config
class Contrastive:
    """The contrastive objective separates the match of a text from all other texts (InfoNCE)."""

    # Source of an anchor's match. pairs: the text pair; dropout: the same text under another
    # dropout mask; split_text: the second half of the text; images: the text of an image, which is
    # the anchor (CLIP). Then the model projects both and learns the temperature.
    positives: Positives = "pairs"
    # Number of hard negatives in a row; if a text pair has more, they are drawn at random.
    hard_negatives: NonNegativeInt = 0
    # Temperature that divides the cosines; the initial value if it is learned.
    temperature: Temperature = 0.05
    learn_temperature: bool = False  # Whether the temperature is a trained parameter.
    pooling: Pooling = "mean"  # How the hidden states of a text become one vector.
    projection: Projection = "none"  # Projection of the pooled vectors before they are compared.
    projection_dim: NonNegativeInt = 0  # Width of the projected vectors; 0: the model's width.
    # View with which the model reads each text.
    view: Literal["bidirectional", "causal"] = "bidirectional"
    mining: MiningConfig = MiningConfig()

    sums_over_rows: ClassVar[bool] = False

    def check(self) -> None:
        """Checks that the settings agree with each other.

        Raises:
            ConfigError: if two settings contradict each other.
        """
        if self.pooling == "first" and self.view == "causal":
            raise ConfigError(
                "contrastive.pooling first sees one token under contrastive.view causal; use last"
            )
        if self.positives != "pairs" and self.hard_negatives:
            raise ConfigError(
                f"contrastive.hard_negatives {self.hard_negatives} needs text pairs, but "
                f"contrastive.positives is {self.positives}; set it to 0"
            )
        if self.positives == "images" and (self.projection != "none" or self.learn_temperature):
            raise ConfigError(
                "contrastive.positives images compares by model.vision.embed_dim, whose matrices "
                "and temperature are the model's; set contrastive.projection=none and "
                "contrastive.learn_temperature=False"
            )
        if self.projection_dim and self.projection == "none":
            raise ConfigError(
                f"contrastive.projection_dim {self.projection_dim} needs a "
                "contrastive.projection; use linear"
            )

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of rows of several texts of `seq_len` positions each.

        Raises:
            ConfigError: if a text has no room in a row, or if the settings need dropout.
        """
        require_single_stack("contrastive", model.encoder.depth)
        if seq_len < 3:
            raise ConfigError(f"train.seq_len {seq_len} holds no text between bos and eos; use 3")
        if self.positives == "dropout" and not (model.embed.dropout or model.block.dropout):
            raise ConfigError(
                "contrastive.positives dropout needs dropout, otherwise both vectors of a text are "
                "equal; set model.block.dropout=0.1"
            )
        if self.positives == "images":
            return self._image_spec(model, seq_len)
        row_kind: RowKind = "text_pairs" if self.positives == "pairs" else "slices"
        hint = "; or set contrastive.view=causal" if self.view == "bidirectional" else ""
        extra_texts = self.mining.hard_negatives if self.mining.refresh_every else 0
        return RowSpec(
            *(seq_len, 0, self.view),
            row_kind=row_kind,
            n_texts=2 + self.hard_negatives,
            extra_texts=extra_texts,
            needs_logits=False,
            extra_cost=ContrastiveHead.cost(
                *(model.width, self.projection_dim or model.width, seq_len),
                pooling=self.pooling,
                projection=self.projection,
                learn_temperature=self.learn_temperature,
            ),
            hint=hint,
            source_hint=", or contrastive.positives=dropout with model.block.dropout=0.1",
        )

    def _image_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of rows of an image and a text of `seq_len` positions.

        Raises:
            ConfigError: if the model does not compare images with texts, or negatives are mined.
        """
        if not model.vision.depth or not model.vision.embed_dim:
            raise ConfigError(
                "contrastive.positives images needs a model that compares images with texts; set "
                "model.vision.depth and model.vision.embed_dim"
            )
        if self.mining.refresh_every:
            raise ConfigError(
                "contrastive.mining searches texts, but contrastive.positives is images; set "
                "contrastive.mining.refresh_every=0"
            )
        cost = pooled_cost(model)
        terms = {name: flops.times(1 / seq_len) for name, flops in cost.terms.items()}
        if self.pooling == "attention":
            terms["scores"] = TermFlops(2.0 * model.width, 2.0 * model.width)
        params = model.width if self.pooling == "attention" else 0
        return RowSpec(
            *(seq_len, 0, self.view),
            row_kind="image_texts",
            needs_logits=False,
            extra_cost=PartCost(params, params, terms),
        )

    def for_eval(self) -> "Contrastive":
        """Returns the objective without hard negatives, and with halves instead of dropout."""
        positives = "split_text" if self.positives == "dropout" else self.positives
        return dataclasses.replace(
            self, positives=positives, hard_negatives=0, mining=MiningConfig()
        )

    @property
    def memory_bank(self) -> HardNegativeMiner | None:
        """The miner of hard negatives, or None if nothing is mined."""
        return (
            HardNegativeMiner(self.mining, self.projection_dim, self.forward)
            if self.mining.refresh_every
            else None
        )

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Returns the function that makes a row of texts [Y T]: anchor, match, hard negatives."""
        tokenizer.specials.require("bos", "eos", needed_by="objective contrastive")
        Y, T = 2 + self.hard_negatives, seq_len
        if self.positives == "images":
            return functools.partial(_image_row, T)

        def make_row(
            slices: list[np.ndarray], text_length: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            row = {
                name: np.zeros((Y, T), np.int32) for name in ("tokens", "positions", "segment_ids")
            }
            ids = np.zeros((Y, 2), np.int32)
            texts = self._select_texts(slices, rng)
            for i, tokens in enumerate(texts):
                n = len(tokens)
                row["tokens"][i, :n], row["positions"][i, :n] = tokens, np.arange(n)
                row["segment_ids"][i, :n], ids[i] = 1, hash_text(tokens)
            return row | {"text_ids": ids, "weights": np.asarray(len(texts) > 0, np.float32)}

        return make_row

    def make_head(self, model: ModelConfig, key: Array) -> ContrastiveHead | None:
        """Returns the head with temperature, query and projection; None if none is trained."""
        if not self.learn_temperature and self.pooling != "attention" and self.projection == "none":
            return None
        return ContrastiveHead(
            model.width,
            self.projection_dim or model.width,
            pooling=self.pooling,
            projection=self.projection,
            log_temperature=math.log(self.temperature) if self.learn_temperature else None,
            key=key,
        )

    def term_weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the number of rows with text."""
        return {"contrastive_nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def forward(
        self, trainable: Trainable, microbatch: dict[str, Array], key: Array | None
    ) -> Embeddings:
        """Runs the model on each text, and each image, and returns unit vectors [B Y Z]."""
        B, Y, T = microbatch["tokens"].shape
        flat = {n: microbatch[n].reshape(B * Y, T) for n in ("tokens", "positions", "segment_ids")}
        seq = SequenceInfo.from_batch(flat, self.view)
        hidden, aux, _ = trainable.model(flat["tokens"], seq, key=key)
        query = trainable.head.query if self.pooling == "attention" else None
        x = pool(hidden, flat["segment_ids"] != 0, self.pooling, query)
        if self.positives == "images":
            return _with_images(trainable, x, aux, microbatch["images"], key)
        x = l2_normalize(project(x, trainable.head))
        return Embeddings(x.reshape(B, Y, -1), aux)

    def reduce(
        self, trainable: Trainable, out: Embeddings, batch: dict[str, Array]
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the InfoNCE loss and the channels' terms, and metrics of the vectors."""
        x, weights = out.vectors, batch["weights"]
        total = self.term_weights(batch)["contrastive_nats"]
        temperature = self._temperature(trainable)
        present = jnp.any(batch["segment_ids"] != 0, axis=-1)
        scores = info_nce(x, temperature, negative_mask(batch["text_ids"], present, weights))
        aux_terms, metrics = aux_loss_terms(trainable, out.aux, batch)
        mean_uniformity = 0.5 * (uniformity(x[:, 0], weights) + uniformity(x[:, 1], weights))
        unit = jnp.ones((), jnp.float32)
        metrics |= {
            "recall@1": WeightedSum(masked_sum(scores.correct.astype(jnp.float32), weights), total),
            "alignment": WeightedSum(masked_sum(alignment(x), weights), total),
            "uniformity": WeightedSum(mean_uniformity, unit),
            "temperature": WeightedSum(temperature, unit),
        }
        if x.shape[1] > 2:
            cosines = hard_negative_cosine(x, present, weights)
            metrics["hard_negative_cosine"] = WeightedSum(*cosines)
        loss = LossTerm(masked_sum(scores.loss, weights), total)
        return {"contrastive_nats": loss} | aux_terms, metrics

    def _temperature(self, trainable: Trainable) -> Float[Array, ""]:
        if self.positives == "images":
            log = -trainable.model.require_joint().log_scale[...].astype(jnp.float32)
        elif self.learn_temperature:
            log = trainable.head.log_temperature[...]
        else:
            return jnp.asarray(self.temperature, jnp.float32)
        return jnp.exp(
            clip_keep_inward_gradient(log, math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
        )

    def _select_texts(self, slices: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """Returns the anchor, the match and as many hard negatives as a row has room for."""
        if self.positives == "dropout":
            return [*slices[:1], *slices[:1]]
        if self.positives == "split_text":
            return [half for tokens in slices[:1] for half in _split_text(tokens)]
        hard = slices[2:]
        if len(hard) > self.hard_negatives:
            hard = [hard[i] for i in np.sort(rng.permutation(len(hard))[: self.hard_negatives])]
        return [*slices[:2], *hard]


def _split_text(tokens: np.ndarray) -> list[np.ndarray]:
    """Splits bos a .. b .. eos into bos a .. eos and bos b .. eos.

    Returns an empty list if the text has fewer than two tokens.
    """
    if len(tokens) < 4:
        return []
    middle = len(tokens) // 2
    return [np.append(tokens[:middle], tokens[-1]), np.insert(tokens[middle:], 0, tokens[0])]


def _image_row(
    T: int, slices: list[np.ndarray], text_length: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns a row of one text [1 T], whose image the loader adds.

    An image has the id of its text, so that images with equal texts are no negatives either.
    """
    row = {name: np.zeros((1, T), np.int32) for name in ("tokens", "positions", "segment_ids")}
    ids = np.zeros((2, 2), np.int32)
    for tokens in slices:
        n = len(tokens)
        row["tokens"][0, :n], row["positions"][0, :n] = tokens, np.arange(n)
        row["segment_ids"][0, :n], ids[:] = 1, hash_text(tokens)
    return row | {"text_ids": ids, "weights": np.asarray(len(slices) > 0, np.float32)}


def _with_images(
    trainable: Trainable,
    texts: Float[Array, "B D"],
    aux: AuxMetrics,
    images: Num[Array, "B height width channels"],
    key: Array | None,
) -> Embeddings:
    """Returns the unit vectors of images and their texts, [B 2 Z]."""
    model = trainable.model
    image_key = None if key is None else jax.random.fold_in(key, 1)
    tower, joint = model.require_vision(), model.require_joint()
    patches, image_aux = tower(images, key=image_key)
    image_vectors = joint.embed_images(tower.pool(patches))
    vectors = jnp.stack([image_vectors, joint.embed_texts(texts)], axis=1)
    return Embeddings(l2_normalize(vectors), aux | image_aux)


def hash_text(tokens: np.ndarray) -> np.ndarray:
    """Returns a 64-bit hash of a text, as two int32; equal texts have equal hashes."""
    digest = hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=8).digest()
    return np.frombuffer(digest, "<i4").astype(np.int32)
