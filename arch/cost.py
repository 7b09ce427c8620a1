"""What a model costs: parameters, FLOPs per token in two ledgers, state bytes; by term.

Every part bills itself (`arch/ledger.py`); nothing here knows a formula of a part.
"""

import dataclasses

import jax.numpy as jnp

from arch.block import Block
from arch.embedding import Embedding, Head
from arch.ledger import Bill, Place, Work
from arch.model import CHANNELS, MIXERS, ModelConfig
from arch.norms import Norm
from arch.sequence import View

OUTSIDE = ("embedding", "head")  # terms that body totals leave out


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one token, forward; `terms` are keyed `part.term`, with the layers of a kind added up."""

    params: int
    active_params: int
    model_flops: float
    executed_flops: float
    terms: dict[str, Work]
    parts: dict[str, int]  # parameters by part
    state_bytes: int  # that decoding keeps for one row of `length` tokens

    @property
    def body_params(self) -> int:
        """Parameters without embedding and head."""
        return self.params - sum(self.parts.get(name, 0) for name in OUTSIDE)

    @property
    def body_flops(self) -> float:
        """Model FLOPs without the head."""
        return self.model_flops - self.head_flops

    @property
    def head_flops(self) -> float:
        return self.terms["head.logits"].model

    @property
    def training_flops(self) -> float:
        """Model FLOPs of forward and backward."""
        return 3 * self.model_flops


def cost(
    config: ModelConfig, length: int, *, view: View = "causal", source: int = 0, logits: float = 1.0
) -> Cost:
    """The cost of `config` on rows of `length` tokens; `logits` is the share that pays the head."""
    place = Place(length, view, source, jnp.dtype(config.dtype).itemsize)
    bills = _layers(config, place)
    D, V = config.width, config.rows
    embedding = Embedding.params(V, D, config.embed, config.positions, config.norm)
    norms = config.depth * Block.params(D, config.block, config.norm)
    norms += config.final_norm * Norm.params(D, config.norm)
    head = Head.params(V, D, config.head)
    terms = _added(bills)
    terms["head.logits"] = Work(2.0 * D * config.vocab * logits, 2.0 * D * V * logits)
    parts = {"embedding": embedding}
    for name, bill in bills:
        parts[name] = parts.get(name, 0) + bill.params
    parts |= {"norms": norms, "head": head}
    shared = embedding + norms + head
    return Cost(
        params=sum(parts.values()),
        active_params=shared + sum(bill.active for _, bill in bills),
        model_flops=sum(work.model for work in terms.values()),
        executed_flops=sum(work.executed for work in terms.values()),
        terms=terms,
        parts=parts,
        state_bytes=sum(bill.state_bytes for _, bill in bills),
    )


def _layers(config: ModelConfig, place: Place) -> list[tuple[str, Bill]]:
    first, layers, repeats, last = config.plan()
    bills = []
    for e in (*first, *layers * repeats, *last):
        mixer, channel = config.part(*e[:2]), config.part(*e[2:])
        bills.append((e.mixer, MIXERS[e.mixer].cost(config.width, mixer, place)))
        bills.append((e.channel, CHANNELS[e.channel].cost(config.width, channel, place)))
    return bills


def _added(bills: list[tuple[str, Bill]]) -> dict[str, Work]:
    terms: dict[str, Work] = {}
    for name, bill in bills:
        for term, work in bill.work.items():
            old = terms.get(f"{name}.{term}", Work(0.0, 0.0))
            total = old.model + work.model, old.executed + work.executed
            terms[f"{name}.{term}"] = Work(*total, work.elementwise)
    return terms
