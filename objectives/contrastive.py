"""Bring texts that belong together close, and all others apart (SimCSE, arXiv:2104.08821).

A row is several texts, each read alone: an anchor, its match, and hard negatives if there are any.
A text becomes one vector (pooled, perhaps projected, of length 1); the loss is InfoNCE over the
whole batch, whatever devices or microbatches it is spread over. Equal texts are never each other's
negatives. Without given matches a text is its own, under another draw of dropout, or its halves are
each other's. Further hard negatives may be mined (`objectives/mining.py`).
"""

import dataclasses
import hashlib
import math
from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch import ModelConfig, Sequence
from arch.terms import Amount
from errors import ConfigError
from objectives.infonce import alignment, candidates, hardness, info_nce, uniformity
from objectives.learner import (
    Example,
    Learner,
    Metrics,
    Reads,
    Represented,
    Rows,
    Term,
    auxiliary,
)
from objectives.mining import Miner, Mining
from objectives.pooling import (
    ContrastiveHead,
    Pooling,
    Projection,
    held,
    normalised,
    pool,
    projected,
)
from objectives.scoring import masked_sum
from objectives.vocabulary import Tokenizer, no_source
from schema import Natural, Range, config

COLDEST, HOTTEST = 0.01, 10.0  # logits are at most 100 times a cosine, as CLIP's
Positives = Literal["given", "dropout", "halves"]
Temperature = Annotated[float, Range(low=COLDEST, high=HOTTEST)]


@config
class Contrastive:
    positives: Positives = "given"  # match: the record's; the text, read twice; a text's other half
    negatives: Natural = 0  # hard ones of a row: drawn, if its record has more
    temperature: Temperature = 0.05
    learned: bool = False  # the temperature is where it starts
    pooling: Pooling = "mean"
    projection: Projection = "none"
    width: Natural = 0  # of projected vectors; 0: the model's
    view: Literal["both", "causal"] = "both"  # how a text is read
    mining: Mining = Mining()

    additive: ClassVar[bool] = False

    def check(self) -> None:
        if self.pooling == "first" and self.view == "causal":
            raise ConfigError(
                "contrastive.pooling first sees one token under contrastive.view causal; use last"
            )
        if self.positives != "given" and self.negatives:
            raise ConfigError(
                f"contrastive.negatives {self.negatives} are of given records, which "
                f"contrastive.positives {self.positives} does not read; set it to 0"
            )
        if self.width and self.projection == "none":
            raise ConfigError(
                f"contrastive.width {self.width} needs a contrastive.projection; use linear"
            )

    def rows(self, model: ModelConfig, length: int) -> Rows:
        no_source("contrastive", model.encoder.depth)
        if length < 3:
            raise ConfigError(f"train.length {length} holds no text between bos and eos; use 3")
        if self.positives == "dropout" and not (model.embed.dropout or model.block.dropout):
            raise ConfigError(
                "contrastive.positives dropout needs dropout, else both readings of a text are "
                "equal; set model.block.dropout=0.1"
            )
        reads: Reads = "records" if self.positives == "given" else "pieces"
        way = "; or set contrastive.view=causal" if self.view == "both" else ""
        mined = self.mining.count if self.mining.every else 0
        return Rows(
            *(length, 0, self.view),
            reads=reads,
            texts=2 + self.negatives,
            added=mined,
            logits=False,
            own=ContrastiveHead.cost(
                *(model.width, self.width or model.width, length),
                pooling=self.pooling,
                projection=self.projection,
                learned=self.learned,
            ),
            remedy=way,
        )

    def judged(self) -> "Contrastive":
        """As it is evaluated: by a text's match alone, and a text is no match of itself."""
        positives = "halves" if self.positives == "dropout" else self.positives
        return dataclasses.replace(self, positives=positives, negatives=0, mining=Mining())

    @property
    def bank(self) -> Miner | None:
        return Miner(self.mining, self.width, self.encode) if self.mining.every else None

    def host(self, model: ModelConfig, length: int, tokenizer: Tokenizer) -> Example:
        tokenizer.specials.require("bos", "eos", what="objective contrastive")
        V, T = 2 + self.negatives, length

        def example(
            pieces: list[np.ndarray], text: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            row = {name: np.zeros((V, T), np.int32) for name in ("tokens", "positions", "segments")}
            ids = np.zeros((V, 2), np.int32)
            texts = self._chosen(pieces, rng)
            for i, piece in enumerate(texts):
                n = len(piece)
                row["tokens"][i, :n], row["positions"][i, :n] = piece, np.arange(n)
                row["segments"][i, :n], ids[i] = 1, text_id(piece)
            return row | {"text_ids": ids, "weights": np.asarray(len(texts) > 0, np.float32)}

        return example

    def head(self, model: ModelConfig, key: Array) -> ContrastiveHead | None:
        if not self.learned and self.pooling != "attention" and self.projection == "none":
            return None
        return ContrastiveHead(
            model.width,
            self.width or model.width,
            pooling=self.pooling,
            projection=self.projection,
            log_temperature=math.log(self.temperature) if self.learned else None,
            key=key,
        )

    def weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        return {"contrastive_nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def encode(self, learner: Learner, micro: dict[str, Array], key: Array | None) -> Represented:
        B, V, T = micro["tokens"].shape
        flat = {n: micro[n].reshape(B * V, T) for n in ("tokens", "positions", "segments")}
        seq = Sequence.of(flat, self.view)
        hidden, aux, _ = learner.model(flat["tokens"], seq, key=key)
        query = learner.head.query if self.pooling == "attention" else None
        x = pool(hidden, flat["segments"] != 0, self.pooling, query)
        x = normalised(projected(x, learner.head))
        return Represented(x.reshape(B, V, -1), aux)

    def reduce(
        self, learner: Learner, out: Represented, batch: dict[str, Array]
    ) -> tuple[dict[str, Term], Metrics]:
        x, weights = out.rows, batch["weights"]
        total, temperature = self.weights(batch)["contrastive_nats"], self._temperature(learner)
        present = jnp.any(batch["segments"] != 0, axis=-1)
        told = info_nce(x, temperature, candidates(batch["text_ids"], present, weights))
        added, metrics = auxiliary(learner, out.aux, batch)
        spread = 0.5 * (uniformity(x[:, 0], weights) + uniformity(x[:, 1], weights))
        one = jnp.ones((), jnp.float32)
        metrics |= {
            "recall@1": Amount(masked_sum(told.correct.astype(jnp.float32), weights), total),
            "alignment": Amount(masked_sum(alignment(x), weights), total),
            "uniformity": Amount(spread, one),
            "temperature": Amount(temperature, one),
        }
        if x.shape[1] > 2:
            metrics["hard_cosine"] = Amount(*hardness(x, present, weights))
        return {"contrastive_nats": Term(masked_sum(told.nats, weights), total)} | added, metrics

    def _temperature(self, learner: Learner) -> Float[Array, ""]:
        if not self.learned:
            return jnp.asarray(self.temperature, jnp.float32)
        log = learner.head.log_temperature[...]
        return jnp.exp(held(log, math.log(COLDEST), math.log(HOTTEST)))

    def _chosen(self, pieces: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """Anchor, match and as many of the hard negatives as there is room for."""
        if self.positives == "dropout":
            return [*pieces[:1], *pieces[:1]]
        if self.positives == "halves":
            return [half for piece in pieces[:1] for half in _halves(piece)]
        hard = pieces[2:]
        if len(hard) > self.negatives:
            hard = [hard[i] for i in np.sort(rng.permutation(len(hard))[: self.negatives])]
        return [*pieces[:2], *hard]


def _halves(piece: np.ndarray) -> list[np.ndarray]:
    """bos a .. eos and bos b .. eos of bos a .. b .. eos; none of less than two tokens."""
    if len(piece) < 4:
        return []
    middle = len(piece) // 2
    return [np.append(piece[:middle], piece[-1]), np.insert(piece[middle:], 0, piece[0])]


def text_id(tokens: np.ndarray) -> np.ndarray:
    """64 bits of a hash of a text, as two int32: equal texts have equal ones."""
    digest = hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=8).digest()
    return np.frombuffer(digest, "<i4").astype(np.int32)
