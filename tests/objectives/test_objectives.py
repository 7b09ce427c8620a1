"""Every architecture learns under every objective; what each objective makes of text."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizers as hf

from arch import MIXERS, Model, ModelConfig
from arch.config import EncoderConfig
from data.tokenizers import JsonTokenizer
from errors import ConfigError, DataError
from objectives import (
    OBJECTIVES,
    CausalLM,
    Contrastive,
    Denoising,
    DummyTokenizer,
    MaskedLM,
    Mixture,
    MixturePart,
    Preference,
    Trainable,
)
from objectives.token_sets import DummySpecials, is_word_start
from settings.tree import freeze
from training.optimizer import OptimizerConfig
from training.settings import Settings, resolve
from training.state import init_state, make_model_optimizer
from training.step import compute_gradients, make_step

LENGTH, BATCH, STEPS, TEXT = 32, 8, 60, 30
# 30 ids of text, ten specials
SPECIALS = DummySpecials(30, 31, 32, 33, 34, 35, sentinels=(36, 37, 38, 39), modes=())


class Words(NamedTuple):
    """Ids 0, 5, 10 .. begin words."""

    vocab_size: int = tiny.VOCAB
    specials: DummySpecials = SPECIALS
    unused: tuple[int, ...] = ()

    @property
    def non_text_ids(self):
        return np.array([*self.unused, *self.specials.all_ids], np.int32)

    def decode(self, ids):
        return "".join(" a" if i % 5 == 0 else "b" for i in ids)


def batch_of(objective, model, step: int, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Rows in which each token decides the next one; all tokens are as frequent."""
    rng = np.random.default_rng(step)
    after = np.roll(np.random.default_rng(99).permutation(TEXT), 1)
    rows, made = objective.row_spec(model, length), []
    example = objective.make_row_fn(model, length, Words())
    for _ in range(BATCH):
        piece = [rng.integers(TEXT)]
        while len(piece) < rows.text_length + rows.overlap:
            piece.append(after[piece[-1]])
        pieces = [np.array(piece, np.int32)]
        if rows.row_kind == "preferences":  # what follows the prompt, or the same in reverse
            pieces = [np.array(x, np.int32) for x in (piece[:5], piece[5:10], piece[9:4:-1])]
        elif rows.n_texts > 1:  # the same tokens in another order
            pieces = [np.array(piece[:5], np.int32), np.array(piece[4::-1], np.int32)]
        made.append(example(pieces, rows.text_length, rng))
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


# Every objective with one mixer and every mixer with one objective; the rest are slow.
GRID = [
    (name, mixer)
    if mixer == "attention" or name == "causal_lm"
    else pytest.param(name, mixer, marks=pytest.mark.slow)
    for name in OBJECTIVES
    for mixer in MIXERS
]


@functools.cache
def initial_model(cfg: ModelConfig) -> Model:
    """Returns a model with its initial parameters."""
    return jax.device_get(jax.jit(lambda: Model(cfg, key=jax.random.key(0)))())


@pytest.mark.parametrize(("name", "mixer"), GRID)
def test_the_loss_falls_below_the_unigram(name, mixer):
    """The initial parameters of mixers are tested by the slow pairs: to compile them costs most."""
    cfg = dataclasses.replace(tiny.config(mixer, **tiny.BIDIRECTIONAL), width=32)
    is_initial = mixer == "attention" or name != "causal_lm"
    losses = learns(OBJECTIVES[name](), cfg, initial_model(cfg) if is_initial else tiny.model(cfg))
    if is_initial and OBJECTIVES[name].sums_over_rows:
        n_choices = 2 if name == "preference" else tiny.VOCAB
        assert abs(losses[0] - np.log(n_choices)) < 0.5


@pytest.mark.parametrize(
    "parameters", [tiny.model, pytest.param(initial_model, marks=pytest.mark.slow)]
)
def test_an_encoder_decoder_denoises(parameters):
    cfg = tiny.config(encoder=EncoderConfig(depth=1), depth=1)
    cfg = dataclasses.replace(cfg, width=32)
    losses = learns(Denoising(), cfg, parameters(cfg))
    if parameters is initial_model:
        assert abs(losses[0] - np.log(tiny.VOCAB)) < 0.5


def learns(objective, model, parameters) -> list[float]:
    """Trains until the loss is below that of guessing by frequency, or among the batch."""
    cfg = OptimizerConfig(learning_rate=2e-2, warmup=5, weight_decay=0.0)
    tx = make_model_optimizer(cfg, STEPS, model, objective)
    shapes = jax.eval_shape(lambda: init_state(model, objective, tx, 4, 0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    trainable = Trainable(parameters, objective.make_head(model, jax.random.key(1)))
    state = state._replace(trainable=trainable)
    step = jax.jit(make_step(objective, tx, cfg, steps=STEPS, grad_accum_steps=1))
    n_choices = TEXT if objective.sums_over_rows else BATCH
    losses, guess = [], np.log(2 if isinstance(objective, Preference) else n_choices)
    for i in range(STEPS):
        state, metrics = step(state, batch_of(objective, model, i))
        losses.append(float(metrics["loss"].mean))
        if np.mean(losses[-5:]) < 0.75 * guess and i > 5:
            break
    assert np.mean(losses[-5:]) < 0.75 * guess
    return losses


gradients = jax.jit(compute_gradients, static_argnums=(0, 4))


def gradients_of_batch(name, batch, microbatches):
    """Returns gradients and the loss; tests with equal shapes share the compiled program."""
    objective, model = OBJECTIVES[name](), tiny.config(depth=1)
    learner = Trainable(tiny.model(model), objective.make_head(model, jax.random.key(0)))
    return jax.device_get(gradients(objective, learner, batch, None, microbatches)[:2])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_microbatches_add_up_to_the_batch(name):
    batch = batch_of(OBJECTIVES[name](), tiny.config(depth=1), 0)
    whole, loss = gradients_of_batch(name, batch, 1)
    parts, same = gradients_of_batch(name, batch, 4)
    np.testing.assert_allclose(loss, same, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_without_a_target_is_no_nan(name):
    # covers N9
    objective, model = OBJECTIVES[name](), tiny.config(depth=1)
    rows = objective.row_spec(model, LENGTH)
    row = objective.make_row_fn(model, LENGTH, Words())(
        [], rows.text_length, np.random.default_rng(0)
    )
    for size, microbatches in ((BATCH, 1), (BATCH, 4)):
        batch = {name: np.stack([value] * size) for name, value in row.items()}
        grads, loss = gradients_of_batch(name, batch, microbatches)
        assert float(loss) == 0
        assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_a_mixture_without_a_target_is_no_nan():
    """In microbatches, one of its parts cached."""
    # covers N9
    model, parts = tiny.config(depth=1), {"masked_lm": MaskedLM(), "contrastive": Contrastive()}
    mixed = Mixture(tuple(MixturePart(name, part, 0.5) for name, part in parts.items()))
    learner = Trainable(tiny.model(model), mixed.make_head(model, jax.random.key(0)))
    batch = {
        f"{name}/{key}": np.zeros((2, *value.shape), value.dtype)
        for name, part in parts.items()
        for key, value in part.make_row_fn(model, LENGTH, Words())(
            [], LENGTH, np.random.default_rng(0)
        ).items()
    }
    grads, loss, _ = jax.device_get(gradients(mixed, learner, batch, jax.random.key(1), 2))
    assert float(loss) == 0
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def hidden_rows(objective, count=200, length=64):
    example = objective.make_row_fn(tiny.config(), length, Words())
    rng, rows = np.random.default_rng(1), []
    for _ in range(count):
        pieces = [np.concatenate([[31], rng.integers(TEXT, size=n), [32]]) for n in (40, 15)]
        rows.append(example([p.astype(np.int32) for p in pieces], length, rng))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_a_share_of_the_text_is_hidden_and_nothing_else():
    rows = hidden_rows(MaskedLM(mask_rate=0.2))
    chosen, shown, told = rows["weights"] == 1, rows["tokens"], rows["targets"]
    assert (chosen.sum(1) == round(0.2 * 55)).all()
    assert (told[chosen] < TEXT).all()  # neither specials nor padding
    assert (shown[~chosen] == told[~chosen]).all()
    masked, kept = shown[chosen] == SPECIALS.mask, shown[chosen] == told[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.03)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / TEXT, abs=0.03)
    assert (shown[chosen][~masked] < TEXT).all()


def test_masks_only_where_it_is_judged():
    objective = MaskedLM(mask_rate=0.4, mask_share=0.5, max_ngram=3).for_eval()
    rows = hidden_rows(objective, 20)
    assert (rows["tokens"][rows["weights"] == 1] == SPECIALS.mask).all()
    assert rows["weights"].sum(1).tolist() == [round(0.15 * 55)] * 20


def test_whole_words_and_ngrams_are_hidden_together():
    rows = hidden_rows(MaskedLM(mask_rate=0.3, whole_words=True))
    for told, chosen in zip(rows["targets"], rows["weights"] == 1, strict=True):
        for at in np.flatnonzero(chosen[1:41]) + 1:
            low = at  # the word that token `at` is of
            while told[low] % 5 and told[low - 1] < TEXT:
                low -= 1
            high = at + 1
            while told[high] % 5 and told[high] < TEXT:
                high += 1
            assert chosen[low:high].all()

    def runs(objective):
        chosen = hidden_rows(objective)["weights"] == 1
        return chosen.sum() / (chosen[:, 1:] & ~chosen[:, :-1]).sum()

    assert runs(MaskedLM(mask_rate=0.15, max_ngram=3)) > 1.4 * runs(MaskedLM(mask_rate=0.15))


def published(model, specials, **parts):
    """A tokenizer of the library, as published ones are made."""
    made = hf.Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.add_special_tokens(specials)
    return JsonTokenizer(made.to_str().encode(), "made here")


def test_words_begin_where_published_tokenizers_say():
    """WordPiece marks what goes on, SentencePiece what begins; both decode a piece alone alike."""
    pieces = ["the", "cat", "un", "##aff", "##able"]
    ids = {t: i for i, t in enumerate(["[UNK]", "[MASK]", *pieces])}
    wordpiece = published(
        *(hf.models.WordPiece(ids, unk_token="[UNK]"), ["[UNK]", "[MASK]"]),
        pre_tokenizer=hf.pre_tokenizers.BertPreTokenizer(),
        decoder=hf.decoders.WordPiece(),
    )
    found = is_word_start(wordpiece)
    assert [found[ids[p]] for p in pieces] == [True, True, True, False, False]
    scores = [("<unk>", 0.0), ("<mask>", 0.0), ("\u2581the", -1.0), ("ing", -1.0), ("\u2581", -2.0)]
    metaspace = published(
        *(hf.models.Unigram(scores, unk_id=0), ["<unk>", "<mask>"]),
        pre_tokenizer=hf.pre_tokenizers.Metaspace(),
        decoder=hf.decoders.Metaspace(),
    )
    assert list(is_word_start(metaspace)[2:5]) == [True, False, True]
    example = MaskedLM(whole_words=True).make_row_fn(tiny.config(), 16, wordpiece)
    text = np.array([2, 3, 4, 5, 6] * 3 + [2], np.int32)
    rows = [example([text], 16, np.random.default_rng(i)) for i in range(20)]
    assert sum(row["weights"].sum() for row in rows) > 20


def test_without_words_there_are_no_whole_ones():
    letters = hf.models.BPE({"a": 0, "b": 1, "[MASK]": 2}, [])
    one = published(letters, ["[MASK]"], decoder=hf.decoders.Fuse())
    with pytest.raises(ConfigError, match="whole_words: no token of this tokenizer begins"):
        MaskedLM(whole_words=True).make_row_fn(tiny.config(), 16, one)


@pytest.mark.parametrize(
    "changes",
    [
        {"style": "infill"},
        {"corruptions": ((0.5, 32.0, 2), (0.8, 8.0, -1))},
    ],
)
def test_positions_reach_to_the_end_of_the_longest_row(changes):
    model = {"encoder": {"depth": 1}, "positions": {"learned": True}, "vocab_size": 365}
    chosen = {"objective": "denoising", "model": model, "denoising": changes}
    made = resolve(freeze(Settings, chosen | {"train": {"seq_len": 64}}), 365)
    rows = made.row_spec
    assert rows.target_length > 64 and made.model.positions.max_length == rows.target_length
    model["positions"]["max_length"] = 64
    with pytest.raises(
        ConfigError,
        match=rf"rows have {rows.target_length} tokens .* model.positions.max_length 64",
    ):
        freeze(Settings, chosen | {"train": {"seq_len": 64}})


def test_logits_are_computed_where_tokens_are_hidden():
    """The head's product has as many rows as the budget, not as the batch."""
    objective, model = MaskedLM(), tiny.config()
    batch = batch_of(objective, model, 0)
    learner = Trainable(tiny.model(model))
    out = jax.eval_shape(lambda b: objective.forward(learner, b, None), batch)
    assert out.scores.loss.shape == (BATCH, 5)  # 15 % of 32, rounded up


@pytest.mark.parametrize(
    ("density", "span", "text", "targets"),
    [(0.15, 3.0, 568, 114), (0.15, 8.0, 588, 100), (0.5, 32.0, 991, 513)],
)
def test_lengths_of_span_corruption_are_those_of_t5(density, span, text, targets):
    """Inputs of 512 tokens (Raffel et al., section 3.1.4, and T5's own helper)."""
    objective = Denoising(corruptions=((density, span, -1),))
    model = tiny.config(encoder=EncoderConfig(depth=1))
    rows = objective.row_spec(model, 512)
    assert (rows.text_length, rows.target_length, rows.source_length) == (text, targets, 512)
    document = np.arange(text, dtype=np.int32) % TEXT
    example = objective.make_row_fn(model, 512, DummyTokenizer(vocab_size=1000))
    row = example([document], text, np.random.default_rng(0))
    assert row["source_segment_ids"].sum() == 512 and row["weights"].sum() == targets


@pytest.mark.parametrize("style", ["sentinels", "infill"])
@pytest.mark.parametrize("encoder", [0, 1])
def test_inputs_and_targets_make_the_text_again(style, encoder):
    corruptions = ((0.15, 3.0, 0), (0.25, 0.0, 1), (0.5, 8.0, -1))
    objective = Denoising(corruptions=corruptions, style=style)
    model = tiny.config(encoder=EncoderConfig(depth=encoder))
    rows, special = objective.row_spec(model, 64), DummyTokenizer(vocab_size=400).specials
    example = objective.make_row_fn(model, 64, DummyTokenizer(vocab_size=400))
    rng, modes = np.random.default_rng(0), set()
    for _ in range(30):
        text = rng.integers(200, 400, rows.text_length).astype(np.int32)
        row = example([text[:9], text[9:]], rows.text_length, rng)
        if encoder:
            inputs = row["source_tokens"][row["source_segment_ids"] == 1]
            targets = row["targets"][row["weights"] == 1]
            assert row["tokens"][0] == special.decoder_start
            n = len(targets)
            assert (row["tokens"][1:n] == targets[:-1]).all()
        else:
            inputs = row["tokens"][row["is_prefix"]]
            targets = row["targets"][row["weights"] == 1]
            after = row["tokens"][(row["segment_ids"] == 1) & ~row["is_prefix"]]
            assert (after == targets[:-1]).all()
            assert (
                row["positions"][row["segment_ids"] == 1] == np.arange(len(inputs) + len(after))
            ).all()
        assert inputs[-1] == targets[-1] == special.eos
        if inputs[0] in special.modes:
            modes.add(int(inputs[0]))
            inputs = inputs[1:]
        if style == "infill":
            assert (targets[:-1] == text).all()
            assert (inputs == special.mask).any()
        else:
            assert (restored(inputs[:-1], targets[:-1], special.sentinels) == text).all()
    assert modes == set(special.modes[:2])


def restored(inputs, targets, sentinels):
    """Each sentinel replaced by what follows it in the targets."""
    spans, current = {}, None
    for token in targets:
        if token in sentinels:
            current = spans.setdefault(int(token), [])
        else:
            current.append(token)
    made = []
    for token in inputs:
        made += spans[int(token)] if token in sentinels else [token]
    return np.array(made)


def test_a_text_too_short_for_a_span_has_no_target():
    objective, model = Denoising(), tiny.config()
    example = objective.make_row_fn(model, LENGTH, Words())
    for pieces in ([], [np.array([3], np.int32)]):
        row = example(pieces, 20, np.random.default_rng(0))
        assert row["weights"].sum() == 0 and row["segment_ids"].sum() == 0


def test_rows_do_not_depend_on_who_else_asks():
    """A row is a function of its pieces and its random numbers."""
    for objective in (MaskedLM(max_ngram=2), Denoising(), CausalLM()):
        example = objective.make_row_fn(tiny.config(), 64, Words())
        pieces = [np.arange(40, dtype=np.int32) % TEXT]
        a, b, c = (example(pieces, 64, np.random.default_rng(s)) for s in (1, 1, 2))
        assert all((a[name] == b[name]).all() for name in a)
        changed = any((a[name] != c[name]).any() for name in a)
        assert changed != isinstance(objective, CausalLM)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MaskedLM(mask_rate=1.0), "rate is 1.0.*below 1"),
        (lambda: MaskedLM(mask_share=0.9, random_share=0.2), "above 1; nearest: random 0.1"),
        (lambda: Denoising(corruptions=()), "empty"),
        (lambda: Denoising(corruptions=((1.5, 3.0, -1),)), "1.5.*density in 0..1"),
        (lambda: Denoising().row_spec(tiny.config(), 3), "train.seq_len 3 does not hold"),
        (
            lambda: Denoising(corruptions=((0.5, 1.0, -1),)).make_row_fn(
                tiny.config(), 64, Words()
            ),
            "spans of a row.*4 sentinels",
        ),
        (
            lambda: Denoising(corruptions=((0.5, 32.0, 1),)).make_row_fn(
                tiny.config(), 64, Words()
            ),
            "mode 1.*0 mode tokens",
        ),
        (
            lambda: MaskedLM().row_spec(tiny.config(encoder=EncoderConfig(depth=2)), 8),
            "masked_lm has no input for an encoder, but model.encoder.depth is 2; set it to 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, said):
    with pytest.raises(ConfigError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_mask_is_refused():
    from data.tokenizers import Specials

    bare = Words(specials=Specials(0, 1, 2, -1, -1, -1, (), ()))
    with pytest.raises(DataError, match="masked_lm needs the token 'mask'"):
        MaskedLM().make_row_fn(tiny.config(), 8, bare)
    with pytest.raises(DataError, match="denoising needs the token 'sentinels'"):
        Denoising().make_row_fn(tiny.config(), 16, bare)


def test_what_a_channel_reports_has_a_number_for_each_layer(monkeypatch):
    """Scanned, unrolled and left-over layers; sums and weights, not means of means."""
    from arch.channels.mlp import Mlp
    from arch.weighted_sum import WeightedSum

    def noisy(self, x, seq, *, key=None):
        y, _ = plain(self, x, seq, key=key)
        return y, {
            "balance": WeightedSum(
                (seq.segment_ids * 2.0).sum(), (seq.segment_ids != 0).sum() * 1.0
            )
        }

    plain = Mlp.__call__
    monkeypatch.setattr(Mlp, "__call__", noisy)
    ids, seq = tiny.tokens(1, 6), tiny.packed([3, 1], 6)
    for scan in (True, False):
        made = tiny.model(tiny.config(depth=5, layers=("attention+mlp",) * 2, scan=scan))
        aux = jax.jit(lambda m: m(ids, seq)[1])(made)
        assert aux["balance"].sum.tolist() == [2 * (3 + 2)] * 5
        assert aux["balance"].weight.tolist() == [4] * 5


def test_losses_of_channels_are_terms_and_the_rest_metrics():
    """Mixture of Experts: the sum over layers of means over tokens, with its coefficient."""
    model = tiny.config(channel="moe")
    learner = Trainable(tiny.model(model))
    objective = CausalLM()
    batch = {name: jnp.asarray(a) for name, a in batch_of(objective, model, 0).items()}

    @jax.jit
    def run(learner, batch):
        out = objective.forward(learner, batch, None)
        return out.aux, *objective.reduce(learner, out, batch)

    aux, terms, metrics = run(learner, batch)
    assert terms["moe.balance_loss"].coefficient == model.moe.balance_loss
    assert terms["moe.balance_loss"].sum == pytest.approx(float(aux["moe.balance_loss"].sum.sum()))
    assert float(terms["moe.balance_loss"].weight) == BATCH * LENGTH
    assert metrics["moe.load_entropy"].mean.shape == (2,)


@pytest.mark.parametrize("changes", [{}, {"whole_words": True}, {"max_ngram": 3}], ids=str)
def test_unknown_and_unused_ids_are_neither_hidden_nor_inserted(changes):
    unused = (3, 7, 11, 29)
    objective = MaskedLM(mask_rate=0.9, mask_share=0.2, random_share=0.8, **changes)
    make_row = objective.make_row_fn(tiny.config(), 400, Words(unused=unused))
    piece = np.tile(np.arange(20, dtype=np.int32), 20)  # of these, 3, 7 and 11 are not text
    row = make_row([piece], 400, np.random.default_rng(0))
    is_unused = np.isin(row["targets"], unused)
    assert is_unused.sum() == 60 and not row["weights"][is_unused].any()
    np.testing.assert_array_equal(row["tokens"][is_unused], row["targets"][is_unused])
    replaced = row["tokens"][row["tokens"] != row["targets"]]
    assert len(replaced) > 200 and not np.isin(replaced, unused).any()
