"""Write what was taken out (T5, Raffel et al., arXiv:1910.10683; UL2, arXiv:2205.05131; BART,
arXiv:1910.13461).

Spans of a row's text are replaced by sentinels; the targets are the sentinels, each followed by
what it stands for, and eos. An encoder-decoder reads the corrupted row as its source; one stack
reads `inputs targets` with the inputs as a prefix and is scored on the targets only.

The lengths are T5's: n tokens of which round(n * density) are noise in round(noise / span) spans
give n - noise + spans + 1 inputs and noise + spans + 1 targets.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from arch import ModelConfig, Sequence
from errors import ConfigError
from objectives.learner import Example, Learner, Metrics, Rows, Term
from objectives.scoring import Scored, score_some, terms_of
from objectives.vocabulary import Tokenizer
from schema import config


class Corruption(NamedTuple):
    density: float  # share of the text that is noise
    span: float  # mean length of a span in tokens; 0: one span, at the end (UL2's S)
    mode: int  # mode token in front of the inputs; -1: none

    def noise(self, n: int) -> tuple[int, int]:
        """How many of n tokens are noise, in how many spans."""
        noise = min(max(round(n * self.density), 1), n - 1)
        spans = round(noise / self.span) if self.span else 1
        return noise, min(max(spans, 1), noise, n - noise)

    def lengths(self, n: int, *, infill: bool) -> tuple[int, int]:
        """Inputs and targets of n tokens of text."""
        noise, spans = self.noise(n)
        targets = n + 1 if infill else noise + spans + 1
        return n - noise + spans + 1 + (self.mode >= 0), targets


@config
class Denoising:
    # (density, mean span, mode): one is drawn for each row. UL2's R, S and X are
    # ((0.15, 3, 0), (0.25, 0, 1), (0.5, 32, 2)).
    corruptions: tuple[tuple[float, float, int], ...] = ((0.15, 3.0, -1),)
    style: Literal["sentinels", "infill"] = "sentinels"  # infill: a mask a span, all as target

    additive: ClassVar[bool] = True
    bank: ClassVar[None] = None

    def check(self) -> None:
        if not self.corruptions:
            raise ConfigError("denoising.corruptions is empty, must be as ((0.15, 3.0, -1),)")
        for one in self.kinds():
            if not 0 < one.density < 1 or one.span < 0 or not -1 <= one.mode <= 2:
                raise ConfigError(
                    f"denoising.corruptions has {tuple(one)}, must be (density in 0..1, mean span "
                    ">= 0, mode -1..2)"
                )

    def kinds(self) -> list[Corruption]:
        return [Corruption(*one) for one in self.corruptions]

    def rows(self, model: ModelConfig, length: int) -> Rows:
        """As much text as fits under every corruption."""
        text = min(self._text(one, model, length) for one in self.kinds())
        sizes = [one.lengths(text, infill=self.style == "infill") for one in self.kinds()]
        most = max(targets for _, targets in sizes)
        if model.encoder.depth:
            return Rows(text, 0, "causal", source=length, tokens=most)
        prefix = max(inputs for inputs, _ in sizes)
        return Rows(text, 0, "prefix", source=prefix, tokens=length, targets=most)

    def judged(self) -> "Denoising":
        """As it is evaluated: the same rows and spans for all."""
        return self

    def host(self, model: ModelConfig, length: int, tokenizer: Tokenizer) -> Example:
        tokenizer.specials.require("sentinels", "eos", "bos", what="objective denoising")
        if self.style == "infill":
            tokenizer.specials.require("mask", what="objective denoising")
        rows, kinds = self.rows(model, length), self.kinds()
        most, have = max(k.noise(rows.text)[1] for k in kinds), len(tokenizer.specials.sentinels)
        if most > have and self.style == "sentinels":
            raise ConfigError(
                f"denoising.corruptions make {most} spans of a row of {rows.text} tokens, the "
                f"tokenizer has {have} sentinels; use longer spans or a shorter train.length"
            )
        if max(k.mode for k in kinds) >= len(tokenizer.specials.modes):
            raise ConfigError(
                f"denoising.corruptions has mode {max(k.mode for k in kinds)}, the tokenizer has "
                f"{len(tokenizer.specials.modes)} mode tokens; use -1"
            )
        decodes = model.encoder.depth > 0

        def example(
            pieces: list[np.ndarray], text: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            tokens = np.concatenate([*pieces, np.zeros(0, np.int32)]).astype(np.int32)
            inputs, targets = self._corrupted(tokens, tokenizer.specials, rng)
            if decodes:
                return _two_rows(inputs, targets, rows.source, rows.tokens, tokenizer.specials.bos)
            return _one_row(inputs, targets, length)

        return example

    def head(self, model: ModelConfig, key: Array) -> None:
        return None

    def weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        return {"denoised_nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def encode(self, learner: Learner, micro: dict[str, Array], key: Array | None) -> Scored:
        model, T = learner.model, micro["tokens"].shape[1]
        if model.config.encoder.depth:
            there = Sequence.of(micro, "both", "source_")
            source, most = (micro["source_tokens"], there), T
            seq = Sequence.of(micro, "causal")
        else:
            source, most = None, self.rows(model.config, T).targets
            seq = Sequence.of(micro, "prefix")
        hidden, aux, _ = model(micro["tokens"], seq, source=source, key=key)
        return score_some(learner, hidden, micro, most, aux)

    def reduce(
        self, learner: Learner, out: Scored, batch: dict[str, Array]
    ) -> tuple[dict[str, Term], Metrics]:
        total = self.weights(batch)["denoised_nats"]
        return terms_of("denoised_nats", learner, out, total, batch)

    def _text(self, one: Corruption, model: ModelConfig, length: int) -> int:
        """The most tokens of text whose inputs (and targets, in one stack) fit `length`."""

        def fits(n: int) -> bool:
            inputs, targets = one.lengths(n, infill=self.style == "infill")
            return inputs <= length if model.encoder.depth else inputs + targets - 1 <= length

        if not fits(2):
            raise ConfigError(
                f"train.length {length} does not hold a corrupted text; nearest: "
                f"{sum(one.lengths(2, infill=self.style == 'infill'))}"
            )
        n = 2
        while fits(n + 1):
            n += 1
        return n

    def _corrupted(
        self, tokens: np.ndarray, specials: Any, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets; of a text too short to corrupt there are none."""
        kind, n = self.kinds()[int(rng.integers(len(self.corruptions)))], len(tokens)
        if n < 2:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        kept, gone = _lengths(kind, n, rng)
        ends = np.cumsum(np.stack([kept, gone], axis=1).reshape(-1))
        parts = np.split(tokens, ends[:-1])
        infill, end = self.style == "infill", np.array([specials.eos])
        marks = np.array([specials.mask] * len(gone) if infill else specials.sentinels)
        inputs = [np.array([specials.modes[kind.mode]])] if kind.mode >= 0 else []
        targets: list[np.ndarray] = []
        for i, (whole, hole) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            inputs += [whole, marks[i : i + 1]]
            targets += [whole, hole] if infill else [marks[i : i + 1], hole]
        made = np.concatenate([*inputs, end]), np.concatenate([*targets, end])
        return made[0].astype(np.int32), made[1].astype(np.int32)


def _lengths(kind: Corruption, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of what is kept and of the hole after it, in turn; T5's random segmentation."""
    noise, spans = kind.noise(n)

    def cut(total: int) -> np.ndarray:
        edges = np.sort(rng.choice(total - 1, spans - 1, replace=False)) + 1
        return np.diff([0, *edges, total])

    return cut(n - noise), cut(noise)


def _one_row(inputs: np.ndarray, targets: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """`inputs targets` in one segment; the last input predicts the first target."""
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "targets", "positions")}
    weights, prefix = np.zeros(length, np.float32), np.zeros(length, bool)
    segments, a = np.zeros(length, np.int32), len(inputs)
    if a:
        end = a + len(targets) - 1
        row["tokens"][:a], row["tokens"][a:end] = inputs, targets[:-1]
        row["targets"][a - 1 : end], weights[a - 1 : end] = targets, 1
        row["positions"][:end], segments[:end], prefix[:a] = np.arange(end), 1, True
    return row | {"weights": weights, "segments": segments, "prefix": prefix}


def _two_rows(
    inputs: np.ndarray, targets: np.ndarray, source: int, length: int, start: int
) -> dict[str, np.ndarray]:
    """A source, and targets that begin from the token `start`."""
    a, b = len(inputs), len(targets)
    there = {
        f"source_{name}": np.zeros(source, np.int32) for name in ("tokens", "positions", "segments")
    }
    there["source_tokens"][:a], there["source_positions"][:a] = inputs, np.arange(a)
    there["source_segments"][:a] = 1
    row = {
        name: np.zeros(length, np.int32) for name in ("tokens", "targets", "positions", "segments")
    }
    row["tokens"][:b] = [start, *targets[:-1]][:b]
    row["targets"][:b], row["positions"][:b], row["segments"][:b] = targets, np.arange(b), 1
    weights = (np.arange(length) < b).astype(np.float32)
    return row | there | {"weights": weights, "prefix": np.zeros(length, bool)}
