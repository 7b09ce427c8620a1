"""A block: a mixer and a channel on a residual stream, wired in one of the published ways.

pre        x + f(n(x))                                   GPT-2, LLaMA
post       n(x + f(x))                                   BERT (arXiv:1706.03762)
sandwich   x + n'(f(n(x)))                               Gemma-2 (arXiv:2105.13290)
parallel   x + mixer(n(x)) + channel(n'(x))              GPT-J, Falcon; n' = n if `norms` is 1
"""

from typing import Any, Literal

from flax import nnx
from jaxtyping import Array, Float

from arch.dropout import dropout, split
from arch.norms import Norm, NormConfig
from arch.sequence import Sequence
from arch.sharding import constrain
from arch.terms import Aux
from schema import Rate, config


@config
class BlockConfig:
    wiring: Literal["pre", "post", "sandwich", "parallel"] = "pre"
    norms: Literal[1, 2] = 2  # of a parallel block
    dropout: Rate = 0.0  # of what is added to the residual stream


class Block(nnx.Module):
    def __init__(self, D: int, cfg: BlockConfig, norm: NormConfig, mixer: Any, channel: Any):
        self.cfg, self.mixer, self.channel = cfg, mixer, channel
        self.norm_mixer = Norm(D, norm)
        if cfg.wiring != "parallel" or cfg.norms == 2:
            self.norm_channel = Norm(D, norm)
        if cfg.wiring == "sandwich":
            self.norm_mixed, self.norm_channelled = Norm(D, norm), Norm(D, norm)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: Any = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Aux, Any]:
        keys, cfg = split(key, 4), self.cfg
        normed = x if cfg.wiring == "post" else self.norm_mixer(x)
        mixed, state = self.mixer(normed, seq, state=state, key=keys[0])
        if cfg.wiring == "parallel":
            normed = self.norm_channel(x) if cfg.norms == 2 else normed
            y, aux = self.channel(normed, seq, key=keys[1])
            return constrain(x + dropout(mixed + y, cfg.dropout, keys[2])), aux, state
        mixed = self.norm_mixed(mixed) if cfg.wiring == "sandwich" else mixed
        x = x + dropout(mixed, cfg.dropout, keys[2])
        x = self.norm_mixer(x) if cfg.wiring == "post" else x
        y, aux = self.channel(x if cfg.wiring == "post" else self.norm_channel(x), seq, key=keys[1])
        y = self.norm_channelled(y) if cfg.wiring == "sandwich" else y
        x = x + dropout(y, cfg.dropout, keys[3])
        return constrain(self.norm_channel(x) if cfg.wiring == "post" else x), aux, state

    @staticmethod
    def params(D: int, cfg: BlockConfig, norm: NormConfig) -> int:
        """Of the block itself, its parts apart."""
        count = {"sandwich": 4, "parallel": cfg.norms}.get(cfg.wiring, 2)
        return count * Norm.params(D, norm)
