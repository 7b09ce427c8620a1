"""A model whose every likelihood is known: the next id depends on the last one alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arch import ModelConfig
from arch.embedding import HeadWeights
from data import DataConfig
from data.tokenizers import ByteTokenizer
from eval.task import Subject
from objectives import Learner
from training import mesh as meshes
from training.settings import EvalConfig, Settings, TrainConfig

VOCAB = ByteTokenizer().vocab


class Bigram(NamedTuple):
    """Logits of the next id by the last."""

    table: jax.Array

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(vocab=VOCAB)

    def __call__(self, tokens, seq, *, state=None, source=None, key=None):
        return self.table[tokens], {}, state

    def features(self, hidden):
        return hidden

    def head_weights(self) -> HeadWeights:
        return HeadWeights(jnp.eye(VOCAB), None, VOCAB, 1.0, 0.0)

    def logits(self, hidden):
        return hidden

    def start(self, batch: int, capacity: int) -> tuple:
        return ()


def successor() -> np.ndarray:
    """After "a" comes "b", e^4 times as likely as any other, and so on; some noise besides."""
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)) * 0.1
    table[np.arange(VOCAB), (np.arange(VOCAB) + 1) % VOCAB] += 4
    return table


def nats(table: np.ndarray, text: str, before: str = "") -> np.ndarray:
    """Of each byte of `text`, by a loop in float64."""
    last = before.encode()[-1] if before else ByteTokenizer().specials.bos
    found = []
    for byte in text.encode():
        row = table[last].astype(np.float64)
        found.append(np.log(np.exp(row).sum()) - row[byte])
        last = byte
    return np.array(found)


def subject(
    model: Any,
    *,
    length: int = 16,
    batch: int = 8,
    config: ModelConfig | None = None,
    objective: str = "causal_lm",
    cache: str = "nowhere",
) -> Subject:
    """A learner of bytes, to be judged on all devices."""
    mesh = meshes.build(meshes.MeshConfig())
    settings = Settings(
        model=config or ModelConfig(),
        objective=objective,
        data=DataConfig(cache=cache),
        train=TrainConfig(length=length),
        eval=EvalConfig(batch=batch),
    )
    placed = jax.device_put(model, meshes.layouts(mesh, model) if config else None)
    return Subject(Learner(placed), mesh, settings, settings.chosen(), Bytes())


class Bytes:
    """Data of which only the tokenizer is asked for."""

    tokenizer = ByteTokenizer()


def oracle(**settings: Any) -> Subject:
    return subject(Bigram(jnp.asarray(successor(), jnp.float32)), **settings)
