"""Evaluates frozen image features by a linear probe for the first word of each image's text.

The features are means over the vectors of patches, from the vision stack's last layer. A logistic
regression is fitted to images of the training split, its penalty is selected on the valid split,
and scores are those of the test split. The classes are the most common first words of training; a
record with another first word is left out. Baselines are the same architecture untrained, the
pixels (at most 256 principal components), and the most common class.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from arch.vision import VisionTower
from data.random_streams import RandomStream, permutation
from data.store import TokenStore
from errors import ConfigError
from eval.baselines.logistic import pca, standardize
from eval.features import with_random_init
from eval.task import EvalContext, Score
from eval.tasks.probe import LinearProbeResult, ProbeDataset, fit_probe, majority_accuracy
from training import mesh as meshes
from training.distributed.multihost import to_host

MAX_RECORDS = {"train": 1500, "valid": 500, "test": 1000}
MAX_CLASSES = 20
MAX_WIDTH = 256  # Features beyond this number are reduced to their principal components.


class ImageProbe:
    """Measures how well a linear probe on image features predicts the first word of the text."""

    version: ClassVar[int] = 2

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores.

        Raises:
            ConfigError: if the model or the data have no images.
        """
        if ctx.trainable.model.vision is None or ctx.data.train.image_shape is None:
            raise ConfigError(
                "task image_probe needs a vision stack and images; set model.vision.depth and "
                "data.source, or remove it from eval.tasks"
            )
        images, dataset = make_dataset(ctx)
        n = len(dataset.split_indices["test"])
        trained = ctx.trainable.model.require_vision()
        untrained = with_random_init(ctx).trainable.model.require_vision()
        sources: dict[str, Callable[[], np.ndarray]] = {
            "": lambda: image_features(ctx, trained, images),
            "untrained_": lambda: image_features(ctx, untrained, images),
            "pixels_": lambda: images.reshape(len(images), -1).astype(np.float64),
        }
        for name, features in sources.items():
            result = _fit(features(), dataset)
            yield Score(f"first_word/{name}accuracy", result.accuracy, n)
            yield Score(f"first_word/{name}nats", result.nats, n)
        yield Score("first_word/majority_accuracy", majority_accuracy(dataset), n)


def make_dataset(
    ctx: EvalContext,
) -> tuple[UInt8[np.ndarray, "N height width channels"], ProbeDataset]:
    """Returns the images of the probe and the classes of their first words."""
    words, images, parts = list[str](), [], list[str]()
    for split, limit in MAX_RECORDS.items():
        store: TokenStore = getattr(ctx.data, split)
        order = permutation(0, 0, RandomStream.IMAGE_PROBE, store.n_documents)
        for document in order[:limit].tolist():
            text = ctx.data.tokenizer.decode(store.document(document)).split()
            words.append(text[0] if text else "")
            images.append(store.image(document))
            parts.append(split)
    counts = Counter(word for word, part in zip(words, parts, strict=True) if part == "train")
    classes = [word for word, _ in counts.most_common(MAX_CLASSES)]
    selection = [i for i, word in enumerate(words) if word in classes]
    split_of = np.array([parts[i] for i in selection])
    y = np.array([classes.index(words[i]) for i in selection])
    indices = {split: np.flatnonzero(split_of == split) for split in MAX_RECORDS}
    return np.stack([images[i] for i in selection]), ProbeDataset(y, len(classes), indices)


def image_features(
    ctx: EvalContext, tower: VisionTower, images: UInt8[np.ndarray, "N height width channels"]
) -> Float[np.ndarray, "N D"]:
    """Returns the mean over the vectors of each image's patches."""
    size = -(-ctx.settings.eval.batch_size // ctx.mesh.size) * ctx.mesh.size
    features = []
    with jax.set_mesh(ctx.mesh):
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            padded = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
            sharding = meshes.batch_array_sharding(ctx.mesh, padded.shape)
            out = to_host(_mean_vectors(tower, jax.device_put(padded, sharding)))
            features.append(np.asarray(out, np.float64)[: len(batch)])
    return np.concatenate(features)


def _fit(features: Float[np.ndarray, "N D"], dataset: ProbeDataset) -> LinearProbeResult:
    train = dataset.split_indices["train"]
    x = standardize(features, train)
    return fit_probe((pca(x, train, MAX_WIDTH) if x.shape[1] > MAX_WIDTH else x)[:, None], dataset)


@jax.jit
def _mean_vectors(tower: VisionTower, images: Array) -> Float[Array, "B D"]:
    return jnp.mean(tower(images)[0].astype(jnp.float32), axis=1)
