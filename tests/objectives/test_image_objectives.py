"""Tests of images under unchanged objectives: CLIP's loss, captions behind images, and scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from data_stores import image_data
from scipy.special import logsumexp

from arch import Model, compute_cost
from arch.layers.patches import VisionConfig
from data.images.settings import ImagesConfig
from data.loader import Batches
from data.settings import DataConfig
from data.text_rows import make_row_source
from errors import ConfigError
from eval.task import EvalContext
from eval.tasks.bits_per_byte import BitsPerByte
from eval.tasks.captions import Captions
from eval.tasks.image_probe import ImageProbe
from eval.tasks.retrieval import Retrieval
from objectives import CausalLM, Contrastive, Trainable
from training import accounting
from training import mesh as meshes
from training.settings import EvalConfig, Settings, TrainConfig, resolve

SIZE = 16
VISION = VisionConfig(depth=1, image_size=SIZE, patch_size=8, embed_dim=6, projector="linear")
CLIP = Contrastive(positives="images", pooling="last", view="causal")
T = 24


def settings(objective: str = "contrastive", **changes) -> Settings:
    """Returns settings of a tiny model of images and texts."""
    model = tiny.config(vision=VISION, vocab_size=0, layers=("attention+none",))
    return Settings(
        model=model,
        objective=objective,
        contrastive=CLIP,
        data=DataConfig(source="digits", images=ImagesConfig(size=SIZE)),
        train=TrainConfig(batch_size=4, seq_len=T, steps=3),
        eval=EvalConfig(batch_size=4, limit=0),
        **changes,
    )


def context(data, cfg: Settings) -> EvalContext:
    """Returns the evaluation of an untrained model."""
    cfg = resolve(cfg, data.tokenizer.vocab_size)
    model = tiny.model(cfg.model)
    mesh = meshes.make_mesh(meshes.MeshConfig())
    return EvalContext(Trainable(model), mesh, cfg, cfg.get_objective(), data)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_data(tmp_path_factory.mktemp("images"), SIZE)


def test_the_loss_is_symmetric_infonce_of_images_and_texts(data):
    """The reference computes the cross-entropy of both softmaxes from the vectors, in float64."""
    ctx = context(data, settings())
    cfg, objective = ctx.settings, ctx.objective
    rows = make_row_source(data.train, objective.row_spec(cfg.model, T), seed=0)
    make_row = objective.make_row_fn(cfg.model, T, data.tokenizer)
    batch = Batches(rows, 4, make_row, 0)[0]
    assert batch["images"].shape == (4, SIZE, SIZE, 1) and batch["tokens"].shape == (4, 1, T)

    @jax.jit
    def run(trainable, batch):
        out = objective.forward(trainable, batch, None)
        terms, metrics = objective.reduce(trainable, out, batch)
        return out.vectors, terms["contrastive_nats"], metrics["temperature"].sum

    vectors, term, temperature = jax.device_get(run(ctx.trainable, batch))
    x = np.asarray(vectors, np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)
    logits = x[:, 0] @ x[:, 1].T / temperature
    ids = batch["text_ids"][:, 1]
    same = (ids[:, None] == ids[None]).all(-1) & ~np.eye(4, dtype=bool)
    logits[same] = -np.inf
    both = [logsumexp(logits, axis=axis) - np.diagonal(logits) for axis in (0, 1)]
    np.testing.assert_allclose(term.sum, np.mean(both, axis=0).sum(), rtol=1e-4)
    scale = ctx.trainable.model.joint.log_scale[...]
    np.testing.assert_allclose(temperature, np.exp(-np.clip(scale, np.log(0.1), np.log(100))))
    swapped = batch | {"images": batch["images"][::-1]}
    other = run(ctx.trainable, swapped)[0]
    np.testing.assert_allclose(other[:, 0], vectors[::-1, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other[:, 1], vectors[:, 1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_scores_of_retrieval_and_captions_name_both_directions_and_intervals(data):
    ctx = context(data, settings())
    scores = {s.name: s.value for s in Retrieval(("test",))(ctx)}
    assert {"test/recall@1", "test/recall@1_reverse", "test/untrained_recall@1"} <= set(scores)
    assert not any("bm25" in name for name in scores)
    ctx = context(data, settings("causal_lm"))
    plain = {s.name: s.value for s in BitsPerByte(("test",))(ctx)}
    scores = {s.name: s.value for s in Captions(("test",))(ctx)}
    name = "test/caption_bits_per_byte"
    np.testing.assert_allclose(scores[name], plain["test/bits_per_byte"], rtol=1e-5)
    assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]
    difference = scores["test/other_image_bits_per_byte"] - scores[name]
    np.testing.assert_allclose(scores["test/image_gain"], difference, rtol=1e-4, atol=1e-9)
    blind = dataclasses.replace(ctx.settings.model, vision=VisionConfig())
    alone = ctx._replace(
        trainable=Trainable(tiny.model(blind)),
        settings=dataclasses.replace(ctx.settings, model=blind),
    )
    scores = {s.name: s.value for s in Captions(("test",))(alone)}
    plain = {s.name: s.value for s in BitsPerByte(("test",))(alone)}
    assert set(scores) == {name, f"{name}_low", f"{name}_high"}
    # Packed rows cut some texts, so that their ends lack the context of their beginnings.
    np.testing.assert_allclose(scores[name], plain["test/bits_per_byte"], rtol=0.01)


def test_a_probe_finds_how_bright_an_image_is(data):
    ctx = context(data, settings())
    scores = {s.name: s.value for s in ImageProbe()(ctx)}
    for source in ("pixels_", ""):
        assert scores[f"first_word/{source}accuracy"] > scores["first_word/majority_accuracy"]
    blind = Trainable(tiny.model(dataclasses.replace(ctx.settings.model, vision=VisionConfig())))
    with pytest.raises(ConfigError, match="image_probe needs a vision stack"):
        list(ImageProbe()(ctx._replace(trainable=blind)))


def test_costs_of_a_run_count_its_images():
    cfg = resolve(settings(), 300)
    cost, text = accounting.model_cost(cfg), compute_cost(cfg.model, T, logit_fraction=0)
    tower = compute_cost(cfg.model, T, logit_fraction=0, images=1, images_as_prefix=False)
    joint = 2 * (tiny.WIDTH + tiny.WIDTH) * VISION.embed_dim / T
    assert cost.model_flops == pytest.approx(tower.model_flops + joint)
    assert tower.model_flops > text.model_flops
    caption = accounting.model_cost(resolve(settings("causal_lm"), 300))
    assert caption.model_flops == compute_cost(cfg.model, T, images=1).model_flops
    head = jax.eval_shape(lambda: CLIP.make_head(cfg.model, jax.random.key(0)))
    leaves = jax.eval_shape(lambda: Model(cfg.model, key=jax.random.key(0)))
    n = sum(int(np.prod(x.shape)) for x in jax.tree.leaves((head, leaves)))
    assert cost.params == n


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: dataclasses.replace(settings(), data=DataConfig()),
            ["'corpus'", "digits or images"],
        ),
        (
            lambda: dataclasses.replace(
                settings(), data=DataConfig(source="digits", images=ImagesConfig(size=32))
            ),
            ["(32, 32, 1)", "(16, 16, 1)", "data.images.size"],
        ),
        (lambda: dataclasses.replace(CLIP, projection="linear"), ["model.vision.embed_dim"]),
        (
            lambda: Settings(model=tiny.config(vision=VISION, depth=0)),
            ["model.depth 0", "no objective"],
        ),
        (lambda: tiny.config(depth=0), ["model.depth 0", "nearest valid value: 1"]),
        (
            lambda: CLIP.row_spec(tiny.config(), T),
            ["model.vision.depth", "model.vision.embed_dim"],
        ),
    ],
)
def test_settings_that_do_not_fit_images_are_refused_in_one_line(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_text_model_packs_captions_and_a_model_of_images_does_not():
    assert CausalLM().row_spec(tiny.config(), T).row_kind == "packed"
    spec = CausalLM().row_spec(tiny.config(vision=VISION), T)
    assert (spec.row_kind, spec.image_prefix, spec.n_images) == ("image_texts", (4, -1), 1)
    assert jnp.asarray(spec.image_prefix)[0] == VISION.n_patches
