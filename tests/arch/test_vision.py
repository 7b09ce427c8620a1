"""Tests of the vision stack: patches, both directions, the way into the text stack, and costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_contracts import multiply_adds

from arch import Model, ModelConfig, SequenceInfo, compute_cost
from arch.layers.patches import VisionConfig, cut_patches, normalize_pixels
from arch.mixers.attention import AttentionConfig
from arch.mixers.combined.bidirectional import BidirectionalConfig
from arch.vision import insert_images, pooled_cost
from errors import ConfigError

SIZE, PATCH, CHANNELS = 6, 3, 2
VISION = VisionConfig(
    depth=2, image_size=SIZE, channels=CHANNELS, patch_size=PATCH, projector="linear"
)
TOWERS = {
    "attention": dataclasses.replace(VISION, width=8, class_token=True, pooling="class"),
    "mamba2": dataclasses.replace(VISION, layers=("mamba2+mlp",), projector="mlp", input_norm=True),
    "experts": dataclasses.replace(VISION, layers=("attention+moe",), pooling="attention"),
}
ROW = [-1] * VISION.n_patches + [3, 1, 4]  # An image, and a text behind it.


def config(name: str, **changes) -> ModelConfig:
    """Returns a tiny model with a vision stack, whose scans are unrolled."""
    vision = dataclasses.replace(TOWERS[name], embed_dim=5, **changes)
    both = BidirectionalConfig(weights="separate")
    return tiny.slow(tiny.config(vision=vision, bidirectional=both, scan=False))


def images(n: int = 2, seed: int = 0) -> jax.Array:
    """Returns random images of 8-bit pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, CHANNELS))
    return jnp.asarray(pixels, jnp.uint8)


def run(model: Model, pictures: jax.Array) -> jax.Array:
    """Returns the hidden vectors of rows of an image and a text."""
    tokens = jnp.asarray([ROW] * len(pictures), jnp.int32)
    seq = dataclasses.replace(SequenceInfo.unpacked(*tokens.shape), images=pictures)
    return model(tokens, seq)[0]


@pytest.mark.parametrize(
    "name",
    ["attention", *(pytest.param(n, marks=pytest.mark.slow) for n in TOWERS if n != "attention")],
)
def test_a_row_sees_its_own_image_and_every_parameter_learns(name):
    model, pictures = tiny.model(config(name)), images()

    def value(model, pictures):
        hidden = run(model, pictures)
        pooled = model.vision.pool(model.vision(pictures)[0])
        vectors = model.joint.embed_images(pooled) + model.joint.embed_texts(hidden[:, -1])
        return jnp.sum(jnp.cos(vectors)) * jnp.exp(model.joint.log_scale[...]), hidden

    grad = jax.jit(jax.value_and_grad(value, has_aux=True))
    (_, hidden), grads = grad(model, pictures)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert (leaf != 0).any(), path
    _, changed = grad(model, pictures.at[1, -1, -1].add(100))[0]
    np.testing.assert_array_equal(hidden[0], changed[0])
    assert (hidden[1] != changed[1]).any(axis=-1)[VISION.n_patches :].all()
    # All patches see each other, so the first one changes with the last pixel.
    assert (hidden[1, 0] != changed[1, 0]).any()


@pytest.mark.parametrize("name", TOWERS)
def test_parameters_and_multiply_adds_of_images_are_counted(name):
    cfg, T = config(name), len(ROW)
    model = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    cost = compute_cost(cfg, T, images=1)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(model))
    jaxpr = jax.make_jaxpr(lambda m: m.logits(run(m, images(1))))(model)
    matrix = sum(flops.executed for flops in cost.terms.values() if not flops.elementwise)
    assert multiply_adds(jaxpr.jaxpr) == pytest.approx(T * matrix)
    text = compute_cost(cfg, T)
    assert text.params == cost.params and text.model_flops < cost.model_flops
    without = compute_cost(dataclasses.replace(cfg, vision=VisionConfig()), T)
    assert text.model_flops == without.model_flops

    def compare(m):
        pooled = m.vision.pool(m.vision(images(1))[0])
        return m.joint.embed_images(pooled), m.joint.embed_texts(jnp.zeros((1, cfg.width)))

    pooled = compute_cost(cfg, T, images=1, images_as_prefix=False)
    in_tower = [flops for name, flops in pooled.terms.items() if name.startswith("vision.")]
    tower, pooling = (
        sum(flops.executed for flops in terms if not flops.elementwise)
        for terms in (in_tower, pooled_cost(cfg).terms.values())
    )
    assert multiply_adds(jax.make_jaxpr(compare)(model).jaxpr) == pytest.approx(T * tower + pooling)


def test_patches_are_in_reading_order_and_pixels_are_normalized():
    pixels = np.asarray(images(1), np.float32)
    patches = np.asarray(cut_patches(jnp.asarray(pixels), PATCH))[0]
    corners = [(0, 0), (0, PATCH), (PATCH, 0), (PATCH, PATCH)]
    for patch, (y, x) in zip(patches, corners, strict=True):
        square = pixels[0, y : y + PATCH, x : x + PATCH]
        np.testing.assert_array_equal(patch, np.moveaxis(square, -1, 0).ravel())
    cfg = dataclasses.replace(VISION, mean=(0.25, 0.5), std=(0.5, 2.0))
    y = normalize_pixels(images(1), cfg, jnp.dtype("float32"))
    expected = (pixels / 255 - [0.25, 0.5]) / [0.5, 2.0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(normalize_pixels(y, cfg, y.dtype), y)


def test_patches_replace_image_tokens_in_order():
    x, patches = np.zeros((2, 5, 1)), np.arange(1.0, 7).reshape(2, 3, 1)
    tokens = np.array([[-1, 7, -1, -1, -1], [7, 7, -1, 7, 7]])
    y = insert_images(*map(jnp.asarray, (x, tokens)), -1, jnp.asarray(patches))
    np.testing.assert_array_equal(y[..., 0], [[1, 0, 2, 3, 0], [0, 0, 4, 0, 0]])


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (lambda: VisionConfig(image_size=30), ["30", "patch_size 4", "nearest valid value: 28"]),
        (lambda: VisionConfig(mean=(0.1, 0.2)), ["vision.mean has 2", "channels 1"]),
        (lambda: VisionConfig(std=(0.0,)), ["vision.std"]),
        (lambda: VisionConfig(pooling="class"), ["class_token"]),
        (
            lambda: tiny.config(vision=VisionConfig(depth=1, layers=("mamba2+mlp",))),
            ["mamba2+mlp", "bidirectional.weights"],
        ),
        (
            lambda: tiny.config(vision=VisionConfig(depth=1, parts={"attention": {"heds": 2}})),
            ["model.vision.parts.attention.heds", "heads"],
        ),
    ],
)
def test_a_vision_stack_that_cannot_be_is_refused_in_one_line(make, fragments):
    with pytest.raises(ConfigError) as error:
        make()
    assert "\n" not in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_images_need_a_projector_and_parts_follow_the_model():
    cfg = tiny.config(vision=dataclasses.replace(VISION, projector="none"))
    with pytest.raises(ValueError, match="vision.projector"):
        jax.eval_shape(lambda: run(Model(cfg, key=jax.random.key(0)), images()))
    tower = dataclasses.replace(cfg, attention=AttentionConfig(heads=2)).vision_stack()
    assert tower.attention == AttentionConfig(heads=2, position_encoding="none")
    assert (tower.width, tower.depth) == (cfg.width, 2)
