"""A model with known likelihoods: the next id depends on the last id alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arch import ModelConfig
from arch.layers.embedding import HeadWeights
from data.settings import DataConfig
from data.tokenizers import ByteTokenizer
from eval.task import EvalContext
from objectives import Trainable
from training import mesh as meshes
from training.settings import EvalConfig, Settings, TrainConfig

VOCAB = ByteTokenizer().vocab_size


class Bigram(NamedTuple):
    """Returns logits of the next id by the last id."""

    table: jax.Array

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(vocab_size=VOCAB)

    def __call__(self, tokens, seq, *, state=None, source=None, key=None):
        return self.table[tokens], {}, state

    def features(self, hidden):
        return hidden

    def head_weights(self) -> HeadWeights:
        return HeadWeights(jnp.eye(VOCAB), None, VOCAB, 1.0, 0.0)

    def logits(self, hidden):
        return hidden

    def init_state(self, batch_size: int, max_length: int) -> tuple:
        return ()


def successor() -> np.ndarray:
    """Returns logits under which "b" follows "a", and so on, e^4 times as likely as other ids."""
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)) * 0.1
    table[np.arange(VOCAB), (np.arange(VOCAB) + 1) % VOCAB] += 4
    return table


def nats(table: np.ndarray, text: str, before: str = "") -> np.ndarray:
    """Returns the nats of each byte of `text`, by a loop in float64."""
    last = before.encode()[-1] if before else ByteTokenizer().specials.bos
    out = []
    for byte in text.encode():
        row = table[last].astype(np.float64)
        out.append(np.log(np.exp(row).sum()) - row[byte])
        last = byte
    return np.array(out)


def eval_context(
    model: Any,
    *,
    length: int = 16,
    batch: int = 8,
    config: ModelConfig | None = None,
    objective: str = "causal_lm",
    cache: str = "nowhere",
) -> EvalContext:
    """Returns the context of a model of bytes, on all devices."""
    mesh = meshes.make_mesh(meshes.MeshConfig())
    settings = Settings(
        model=config or ModelConfig(),
        objective=objective,
        data=DataConfig(cache=cache),
        train=TrainConfig(seq_len=length),
        eval=EvalConfig(batch_size=batch),
    )
    model = jax.device_put(model, meshes.param_shardings(mesh, model) if config else None)
    return EvalContext(Trainable(model), mesh, settings, settings.get_objective(), Bytes())


class Bytes:
    """Data with nothing but a tokenizer."""

    tokenizer = ByteTokenizer()

    def select(self, kind: str) -> "Bytes":
        return self


def oracle(**settings: Any) -> EvalContext:
    """Returns the context of the model of `successor`."""
    return eval_context(Bigram(jnp.asarray(successor(), jnp.float32)), **settings)
