"""What a model costs: parameters, FLOPs per token in two ledgers, state bytes; by term.

Every part bills itself (`arch/ledger.py`); nothing here knows a formula of a part.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp

from arch.attention import Attention
from arch.block import Block
from arch.config import CHANNELS, MIXERS, ModelConfig
from arch.directions import BothWays
from arch.embedding import Embedding, Head
from arch.ledger import Bill, Place, Work
from arch.norms import Norm
from arch.pattern import Plan
from arch.pooler import Pooler
from arch.positions import RelativePositions
from arch.sequence import View

OBJECTIVE = "objective"  # what its own weights cost (`joined`)
OUTSIDE = ("embedding", "head", OBJECTIVE)  # terms that body totals leave out


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one token, forward; `terms` are keyed `part.term`, with the layers of a kind added up."""

    params: int
    active_params: int
    model_flops: float
    executed_flops: float
    terms: dict[str, Work]
    parts: dict[str, int]  # parameters by part
    recomputed_flops: float  # executed ones that the backward pass runs again (`model.remat`)
    state_bytes: int  # that decoding keeps for one row of `length` tokens

    @property
    def body_params(self) -> int:
        """Parameters without embedding and head."""
        return self.params - sum(self.parts.get(name, 0) for name in OUTSIDE)

    @property
    def active_body_params(self) -> int:
        """Parameters that one token meets without embedding and head."""
        return self.active_params - (self.params - self.body_params)

    @property
    def body_flops(self) -> float:
        """Model FLOPs without the head and the objective's own."""
        own = sum(work.model for name, work in self.terms.items() if _part(name) == OBJECTIVE)
        return self.model_flops - self.head_flops - own

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
    itemsize = jnp.dtype(config.dtype).itemsize
    decodes = config.encoder.depth > 0
    bills = _layers(config, config.plan(), Place(length, view, source, itemsize), decodes)
    D, V = config.width, config.rows
    embedding = Embedding.params(V, D, config.embed, config.positions, config.norm)
    norms = _norms(config, config.plan(), decodes)
    heads = config.relative_heads()
    relative = RelativePositions.params(heads, config.positions) if heads else 0
    if decodes:
        bills += _encoder(config, length, source, itemsize)
        norms += _norms(config, config.encoder_plan(), False)
        relative *= 2
    head = Head.params(V, D, config.head, config.embed, config.norm)
    pooler = Pooler.params(D, config.pooler)  # no objective runs it
    terms = _added(bills)
    model, executed = (Head.flops(n, D, config.head, config.embed) for n in (config.vocab, V))
    terms["head.logits"] = Work(logits * model, logits * executed)
    if config.embed.width:
        share = 1 + source / length if decodes and length else 1.0
        flops = 2.0 * D * config.embed.width * share
        terms["embedding.projection"] = Work(flops, flops)
    parts = {"embedding": embedding}
    for name, bill in bills:
        parts[name] = parts.get(name, 0) + bill.params
    parts |= {"norms": norms, "head": head} | ({"relative": relative} if relative else {})
    parts |= {"pooler": pooler} if pooler else {}
    shared = embedding + norms + head + relative + pooler
    return Cost(
        params=sum(parts.values()),
        active_params=shared + sum(bill.active for _, bill in bills),
        model_flops=sum(work.model for work in terms.values()),
        executed_flops=sum(work.executed for work in terms.values()),
        terms=terms,
        parts=parts,
        recomputed_flops=_recomputed(config, terms),
        state_bytes=sum(bill.state_bytes for _, bill in bills),
    )


def joined(cost: Cost, own: Bill) -> Cost:
    """`cost` with what an objective's own weights add to a token of its rows."""
    terms = {f"{OBJECTIVE}.{name}": work for name, work in own.work.items()}
    return dataclasses.replace(
        cost,
        params=cost.params + own.params,
        active_params=cost.active_params + own.active,
        model_flops=cost.model_flops + sum(work.model for work in terms.values()),
        executed_flops=cost.executed_flops + sum(work.executed for work in terms.values()),
        terms=cost.terms | terms,
        parts=cost.parts | ({OBJECTIVE: own.params} if own.params else {}),
    )


def mean(bills: Sequence[Cost], shares: Sequence[float]) -> Cost:
    """The cost of a token that is of each bill by its share; one model's parameters are one, and
    those of objectives add up."""
    pairs = list(zip(bills, shares, strict=True))

    def term(name: str) -> Work:
        found = (bill.terms[name].times(share) for bill, share in pairs if name in bill.terms)
        return functools.reduce(Work.plus, found)

    own = sum(bill.parts.get(OBJECTIVE, 0) for bill in bills)
    more = own - bills[0].parts.get(OBJECTIVE, 0)
    return dataclasses.replace(
        bills[0],
        params=bills[0].params + more,
        active_params=bills[0].active_params + more,
        parts=bills[0].parts | ({OBJECTIVE: own} if own else {}),
        recomputed_flops=sum(share * bill.recomputed_flops for bill, share in pairs),
        model_flops=sum(share * bill.model_flops for bill, share in pairs),
        executed_flops=sum(share * bill.executed_flops for bill, share in pairs),
        terms={name: term(name) for bill in bills for name in bill.terms},
    )


def _layers(config: ModelConfig, plan: Plan, place: Place, decodes: bool) -> list[tuple[str, Bill]]:
    """A bill for each use of a part in a stack."""
    bills, D = [], config.width
    for e in plan.entries():
        mixer, Mixer = config.part(*e[:2]), MIXERS[e.mixer]
        bill = Mixer.cost(D, mixer, place)
        if "both" not in Mixer.views(mixer) and config.directions.weights != "none":
            bill = BothWays.cost(bill, D, config.directions, place)
        bills.append((e.mixer, bill))
        bills.append((e.channel, CHANNELS[e.channel].cost(D, config.part(*e[2:]), place)))
        if decodes:
            bills.append(("cross", Attention.cross_cost(D, config.cross, place)))
    return bills


def _encoder(
    config: ModelConfig, length: int, source: int, itemsize: int
) -> list[tuple[str, Bill]]:
    """What the encoder adds to each token of the decoder, of which there are `length`."""
    share = source / length if length else 0.0
    found = []
    place = Place(source, "both", 0, itemsize)
    for name, bill in _layers(config, config.encoder_plan(), place, False):
        work = {term: one.times(share) for term, one in bill.work.items()}
        found.append((f"encoder.{name}", Bill(bill.params, bill.active, work)))
    return found


def _norms(config: ModelConfig, plan: Plan, cross: bool) -> int:
    own = sum(
        Block.params(config.width, config.block, config.norm, e.channel, cross)
        for e in plan.entries()
    )
    own -= config.block.bare_first * Norm.params(config.width, config.norm)
    return own + config.final_norm * Norm.params(config.width, config.norm)


def _added(bills: list[tuple[str, Bill]]) -> dict[str, Work]:
    terms: dict[str, Work] = {}
    for name, bill in bills:
        for term, work in bill.work.items():
            key = f"{name}.{term}"
            terms[key] = terms[key].plus(work) if key in terms else work
    return terms


def _recomputed(config: ModelConfig, terms: dict[str, Work]) -> float:
    """Of the blocks: all of it, or what is no product with a weight. A compiler may leave out the
    last product of a block, for which nothing asks again; here it counts."""
    if config.remat == "none":
        return 0.0
    blocks = [work for name, work in terms.items() if _part(name) not in OUTSIDE]
    again = [w for w in blocks if config.remat == "full" or w.elementwise or w.batched]
    return sum(work.executed for work in again)


def _part(name: str) -> str:
    return name.partition(".")[0]
