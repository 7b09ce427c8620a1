"""Denoising: write the spans that were removed from a text.

The objectives are T5's (Raffel et al., arXiv:1910.10683), UL2's (arXiv:2205.05131) and BART's
infilling (arXiv:1910.13461). Spans of a row's text are replaced by sentinels. The targets are the
sentinels, each followed by the tokens that it replaces, and eos. An encoder-decoder reads the
corrupted row as its source. A single stack reads `inputs targets` with the inputs as a prefix, and
only the targets are scored.

The lengths are T5's: n tokens, of which noise = round(n * density) are removed in
spans = round(noise / mean span length) spans, give n - noise + spans + 1 inputs and
noise + spans + 1 targets. As in T5, spans of text and of noise alternate, text first: the first
token of a row is never removed, and the last one always is.
"""

from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from arch import ModelConfig, SequenceInfo
from errors import ConfigError
from objectives.token_loss import MaskedTokenScores, loss_terms, score_masked
from objectives.token_sets import SpecialIds, TokenizerLike
from objectives.types import LossTerm, Metrics, RowFn, RowSpec, Trainable
from settings.types import config


class SpanCorruption(NamedTuple):
    """A kind of span corruption."""

    noise_density: float  # Share of the text that is removed.
    mean_span_length: float  # Mean length of a span in tokens; 0: one span, at the end (UL2's S).
    mode: int  # Index of the mode token in front of the inputs; -1: none.

    def noise_counts(self, n: int) -> tuple[int, int]:
        """Returns how many of n tokens are noise, and in how many spans."""
        noise = min(max(round(n * self.noise_density), 1), n - 1)
        mean = max(self.mean_span_length, 0.5)  # A shorter one asks for more spans than tokens.
        spans = round(noise / mean) if self.mean_span_length else 1
        return noise, min(max(spans, 1), noise, n - noise)

    def input_target_lengths(self, n: int, *, infill: bool) -> tuple[int, int]:
        """Returns the numbers of inputs and of targets for n tokens of text."""
        noise, spans = self.noise_counts(n)
        targets = n + 1 if infill else noise + spans + 1
        return n - noise + spans + 1 + (self.mode >= 0), targets


@config
class Denoising:
    """The denoising objective restores removed spans of a text (T5, UL2, BART)."""

    # Corruptions (noise density, mean span length, mode token); one is drawn for each row.
    # UL2's R, S and X are ((0.15, 3, 0), (0.25, 0, 1), (0.5, 32, 2)).
    corruptions: tuple[tuple[float, float, int], ...] = ((0.15, 3.0, -1),)
    # Form of the targets. sentinels: the removed spans; infill: the whole text, masks as input.
    style: Literal["sentinels", "infill"] = "sentinels"

    sums_over_rows: ClassVar[bool] = True
    memory_bank: ClassVar[None] = None

    def check(self) -> None:
        """Checks the corruptions.

        Raises:
            ConfigError: if there are none, or if a number is out of range.
        """
        if not self.corruptions:
            raise ConfigError("denoising.corruptions is empty, must be as ((0.15, 3.0, -1),)")
        for c in self.span_corruptions():
            if not 0 < c.noise_density < 1 or c.mean_span_length < 0 or not -1 <= c.mode <= 2:
                raise ConfigError(
                    f"denoising.corruptions has {tuple(c)}, must be (density in 0..1, mean span "
                    ">= 0, mode -1..2)"
                )

    def span_corruptions(self) -> list[SpanCorruption]:
        """Returns the corruptions with named fields."""
        return [SpanCorruption(*values) for values in self.corruptions]

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of rows with as much text as fits under every corruption."""
        corruptions = self.span_corruptions()
        n = min(self._max_text_length(c, model, seq_len) for c in corruptions)
        lengths = [c.input_target_lengths(n, infill=self.style == "infill") for c in corruptions]
        max_targets = max(targets for _, targets in lengths)
        if model.encoder.depth:
            return RowSpec(n, 0, "causal", source_length=seq_len, target_length=max_targets)
        max_inputs = max(inputs for inputs, _ in lengths)
        return RowSpec(
            *(n, 0, "prefix"),
            source_length=max_inputs,
            target_length=seq_len,
            max_targets=max_targets,
        )

    def for_eval(self) -> "Denoising":
        """Returns the objective itself; all models are evaluated on the same rows and spans."""
        return self

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Returns the function that corrupts a text and makes its row.

        Raises:
            ConfigError: if the tokenizer has too few sentinels or mode tokens.
        """
        needed = "decoder_start" if model.encoder.depth else "eos"
        tokenizer.specials.require("sentinels", "eos", needed, needed_by="objective denoising")
        if self.style == "infill":
            tokenizer.specials.require("mask", needed_by="objective denoising")
        spec, corruptions = self.row_spec(model, seq_len), self.span_corruptions()
        max_spans = max(c.noise_counts(spec.text_length)[1] for c in corruptions)
        n_sentinels = len(tokenizer.specials.sentinels)
        if max_spans > n_sentinels and self.style == "sentinels":
            raise ConfigError(
                f"denoising.corruptions make {max_spans} spans of a row of {spec.text_length} "
                f"tokens, the tokenizer has {n_sentinels} sentinels; use longer spans or a shorter "
                "train.seq_len"
            )
        if max(c.mode for c in corruptions) >= len(tokenizer.specials.modes):
            raise ConfigError(
                f"denoising.corruptions has mode {max(c.mode for c in corruptions)}, the tokenizer "
                f"has {len(tokenizer.specials.modes)} mode tokens; use -1"
            )
        has_encoder = model.encoder.depth > 0

        def make_row(
            slices: list[np.ndarray], text_length: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            tokens = np.concatenate([*slices, np.zeros(0, np.int32)]).astype(np.int32)
            inputs, targets = self._corrupt(tokens, tokenizer.specials, rng)
            if has_encoder:
                start, length = tokenizer.specials.decoder_start, spec.source_length
                return _encoder_decoder_rows(inputs, targets, length, spec.target_length, start)
            return _decoder_only_row(inputs, targets, seq_len)

        return make_row

    def make_head(self, model: ModelConfig, key: Array) -> None:
        """Returns None, since the objective has no parameters of its own."""
        return None

    def term_weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the number of scored targets."""
        return {"denoised_nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def forward(
        self, trainable: Trainable, microbatch: dict[str, Array], key: Array | None
    ) -> MaskedTokenScores:
        """Runs the model and scores the targets."""
        model, T = trainable.model, microbatch["tokens"].shape[1]
        if model.config.encoder.depth:
            source_seq = SequenceInfo.from_batch(microbatch, "bidirectional", "source_")
            source, max_targets = (microbatch["source_tokens"], source_seq), T
            seq = SequenceInfo.from_batch(microbatch, "causal")
        else:
            source, max_targets = None, self.row_spec(model.config, T).max_targets
            seq = SequenceInfo.from_batch(microbatch, "prefix")
        hidden, aux, _ = model(microbatch["tokens"], seq, source=source, key=key)
        return score_masked(trainable, hidden, microbatch, max_targets, aux)

    def reduce(
        self, trainable: Trainable, out: MaskedTokenScores, batch: dict[str, Array]
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the cross-entropy and the channels' terms, and the accuracy."""
        total = self.term_weights(batch)["denoised_nats"]
        return loss_terms("denoised_nats", trainable, out, total, batch)

    def _max_text_length(self, corruption: SpanCorruption, model: ModelConfig, seq_len: int) -> int:
        """Returns the maximum number of text tokens whose row fits `seq_len`.

        With an encoder the inputs must fit; in a single stack the inputs and the targets must fit.

        Raises:
            ConfigError: if not even two tokens fit.
        """

        def fits(n: int) -> bool:
            inputs, targets = corruption.input_target_lengths(n, infill=self.style == "infill")
            return inputs <= seq_len if model.encoder.depth else inputs + targets - 1 <= seq_len

        if not fits(2):
            raise ConfigError(
                f"train.seq_len {seq_len} does not hold a corrupted text; nearest valid "
                f"value: {sum(corruption.input_target_lengths(2, infill=self.style == 'infill'))}"
            )
        n = 2
        while fits(n + 1):
            n += 1
        return n

    def _corrupt(
        self, tokens: np.ndarray, specials: SpecialIds, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs and targets; both are empty if the text is too short to corrupt."""
        corruption = self.span_corruptions()[int(rng.integers(len(self.corruptions)))]
        n = len(tokens)
        if n < 2:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        text_lengths, noise_lengths = _span_lengths(corruption, n, rng)
        ends = np.cumsum(np.stack([text_lengths, noise_lengths], axis=1).reshape(-1))
        parts = np.split(tokens, ends[:-1])
        infill, eos = self.style == "infill", np.array([specials.eos])
        marks = np.array([specials.mask] * len(noise_lengths) if infill else specials.sentinels)
        inputs = [np.array([specials.modes[corruption.mode]])] if corruption.mode >= 0 else []
        targets: list[np.ndarray] = []
        for i, (text, noise) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            inputs += [text, marks[i : i + 1]]
            targets += [text, noise] if infill else [marks[i : i + 1], noise]
        input_row, target_row = np.concatenate([*inputs, eos]), np.concatenate([*targets, eos])
        return input_row.astype(np.int32), target_row.astype(np.int32)


def _span_lengths(
    corruption: SpanCorruption, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths of text spans and of the noise span after each, all at least 1.

    This is T5's random segmentation.
    """
    noise, spans = corruption.noise_counts(n)

    def split_length(total: int) -> np.ndarray:
        edges = np.sort(rng.choice(total - 1, spans - 1, replace=False)) + 1
        return np.diff([0, *edges, total])

    return split_length(n - noise), split_length(noise)


def _decoder_only_row(
    inputs: np.ndarray, targets: np.ndarray, length: int
) -> dict[str, np.ndarray]:
    """Returns `inputs targets` in one segment; the last input predicts the first target."""
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "targets", "positions")}
    weights, is_prefix = np.zeros(length, np.float32), np.zeros(length, bool)
    segment_ids, a = np.zeros(length, np.int32), len(inputs)
    if a:
        end = a + len(targets) - 1
        row["tokens"][:a], row["tokens"][a:end] = inputs, targets[:-1]
        row["targets"][a - 1 : end], weights[a - 1 : end] = targets, 1
        row["positions"][:end], segment_ids[:end], is_prefix[:a] = np.arange(end), 1, True
    return row | {"weights": weights, "segment_ids": segment_ids, "is_prefix": is_prefix}


def _encoder_decoder_rows(
    inputs: np.ndarray, targets: np.ndarray, source_length: int, length: int, decoder_start_id: int
) -> dict[str, np.ndarray]:
    """Returns a source row, and a target row that begins with the token `decoder_start_id`."""
    a, b = len(inputs), len(targets)
    source = {
        f"source_{name}": np.zeros(source_length, np.int32)
        for name in ("tokens", "positions", "segment_ids")
    }
    source["source_tokens"][:a], source["source_positions"][:a] = inputs, np.arange(a)
    source["source_segment_ids"][:a] = 1
    row = {
        name: np.zeros(length, np.int32)
        for name in ("tokens", "targets", "positions", "segment_ids")
    }
    row["tokens"][:b] = [decoder_start_id, *targets[:-1]][:b]
    row["targets"][:b], row["positions"][:b], row["segment_ids"][:b] = targets, np.arange(b), 1
    weights = (np.arange(length) < b).astype(np.float32)
    return row | source | {"weights": weights, "is_prefix": np.zeros(length, bool)}
