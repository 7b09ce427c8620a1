"""The vision stack: patches of an image through any blocks of the backbone, read from both sides.

Its vectors go two ways. `project` maps those of patches into the text stack, where they replace the
tokens with the id `vision.token_id` (LLaVA, arXiv:2304.08485). `pool` makes one vector of an image,
for class scores (ViT, arXiv:2010.11929) and for comparison with texts (CLIP, arXiv:2103.00020).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from arch.channels.mlp import Mlp
from arch.config import ModelConfig
from arch.layers.linear import linear
from arch.layers.norms import Norm
from arch.layers.patches import PatchEmbedding
from arch.mixers.attention import Attention
from arch.mixers.attention_config import cross_attention_cost
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import SequenceInfo
from arch.sharding import P, make_matrix, make_param, make_vector
from arch.stack import Stack
from arch.weighted_sum import AuxMetrics

IMAGE_PREFIX = "vision/"  # Prefix of the auxiliary metrics that the vision stack's channels report.


class VisionTower(nnx.Module):
    """A module `tower(images) -> (vectors, aux)`, with what turns the vectors into its outputs."""

    def __init__(self, config: ModelConfig, *, key: Array):
        cfg, tower = config.vision, config.vision_stack()
        self.cfg, self.dtype = cfg, jnp.dtype(config.dtype)
        keys, D = jax.random.split(key, 5), tower.width
        self.patches = PatchEmbedding(D, cfg, tower.norm, key=keys[0])
        self.stack = Stack(tower, tower.layer_layout(), key=keys[1])
        self.pooler = AttentionPooler(tower, key=keys[2]) if cfg.pooling == "attention" else None
        if cfg.projector != "none":
            width = config.width
            self.w_project = make_matrix(keys[3], (D, width), P("data", "model"))
            self.b_project = make_vector(width, 0.0)
        if cfg.projector == "mlp":
            self.w_out = make_matrix(jax.random.fold_in(keys[3], 1), (width, width), P("model"))
            self.b_out = make_vector(width, 0.0)
        if cfg.num_classes:
            self.w_class = make_matrix(keys[4], (D, cfg.num_classes), P("data", None))
            self.b_class = make_vector(cfg.num_classes, 0.0)

    def __call__(
        self, images: Num[Array, "B height width channels"], *, key: Array | None = None
    ) -> tuple[Float[Array, "B S D"], AuxMetrics]:
        """Returns the vectors of the class token, if there is one, and of all patches.

        The channels' reports come per image: sums over an image's tokens are divided by their
        number.
        """
        with jax.named_scope("vision"):
            x = self.patches(images, self.dtype)
            seq = SequenceInfo.unpacked(*x.shape[:2], causal=False)
            x, aux, _ = self.stack(x, seq, key=key)
        return x, {
            f"{IMAGE_PREFIX}{name}": jax.tree.map(lambda a: a / self.cfg.n_tokens, value)
            for name, value in aux.items()
        }

    def pool(self, x: Float[Array, "B S D"]) -> Float[Array, "B D"]:
        """Returns one vector per image, by `vision.pooling`."""
        if self.pooler is not None:
            return self.pooler(x)
        return x[:, 0] if self.cfg.pooling == "class" else jnp.mean(self._patches(x), axis=1)

    def class_scores(self, x: Float[Array, "B S D"]) -> Float[Array, "B classes"]:
        """Returns the scores of the classes of each image."""
        return self.pool(x) @ self.w_class[...].astype(x.dtype) + self.b_class[...].astype(x.dtype)

    def project(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D_text"]:
        """Maps the vectors of patches, without the class token, into the text stack."""
        y = linear(self._patches(x), self.w_project[...], self.b_project[...])
        if self.cfg.projector == "mlp":
            y = jax.nn.gelu(y, approximate=False)
            y = linear(y, self.w_out[...], self.b_out[...])
        return y

    def _patches(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return x[:, int(self.cfg.class_token) :]


class AttentionPooler(nnx.Module):
    """One vector per image by attention from a learned query (SigLIP, arXiv:2303.15343).

    y = attention(query, x); y + channel(norm(y)). Attention and MLP have the settings of the
    vision stack.
    """

    def __init__(self, tower: ModelConfig, *, key: Array):
        keys, D = jax.random.split(key, 3), tower.width
        init = nnx.initializers.normal(D**-0.5)
        self.query = make_param(keys[0], (D,), P(None), init, role="vector", decay=False)
        self.attention = Attention(D, tower.attention, key=keys[1], is_cross=True)
        self.norm = Norm(D, tower.norm)
        self.mlp = Mlp(D, tower.mlp, key=keys[2])

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B D"]:
        """Returns one vector per image."""
        B, S, D = x.shape
        query = jnp.broadcast_to(self.query[...].astype(x.dtype), (B, 1, D))
        one, all_tokens = (SequenceInfo.unpacked(B, n, causal=False) for n in (1, S))
        y, _ = self.attention(query, one, memory=(x, all_tokens))
        z, _ = self.mlp(self.norm(y), one)
        return (y + z)[:, 0]

    @staticmethod
    def cost(tower: ModelConfig, n_tokens: int) -> PartCost:
        """Returns the cost for one image of `n_tokens` tokens."""
        context = CostContext(1, "bidirectional", n_tokens)
        parts = {
            "pool_attention": cross_attention_cost(tower.width, tower.attention, context),
            "pool_mlp": Mlp.cost(tower.width, tower.mlp, context),
        }
        terms = {
            f"{part}.{name}": flops
            for part, cost in parts.items()
            for name, flops in cost.terms.items()
        }
        params = sum(cost.params for cost in parts.values())
        params += tower.width + Norm.params(tower.width, tower.norm)
        return PartCost(params, params, terms)


def insert_images(
    x: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    token_id: int,
    patches: Float[Array, "B S D"],
) -> Float[Array, "B T D"]:
    """Replaces the vectors of the tokens `token_id` of each row by those of its image, in order.

    The first such token of a row gets the first patch; tokens beyond the last patch keep theirs.
    """
    is_patch = tokens == token_id
    order = jnp.cumsum(is_patch, axis=1) - 1
    index = jnp.clip(order, 0, patches.shape[1] - 1)[..., None]
    values = jnp.take_along_axis(patches, index, axis=1)
    is_patch &= order < patches.shape[1]
    return jnp.where(is_patch[..., None], values.astype(x.dtype), x)


def vision_costs(config: ModelConfig, *, with_projector: bool) -> dict[str, PartCost]:
    """Returns the cost for one image of everything but the blocks, by part.

    `with_projector` says whether the image enters the text stack. What makes one vector of it has
    parameters here and FLOPs in `pooled_cost`.
    """
    cfg, tower = config.vision, config.vision_stack()
    D = tower.width
    embedding = PatchEmbedding.params(D, cfg, tower.norm)
    costs = {"embedding": PartCost(embedding, embedding, {"patches": PatchEmbedding.flops(D, cfg)})}
    # The width of the inputs of each matrix of the projector; all have a bias.
    in_widths = {"none": (), "linear": (D,), "mlp": (D, config.width)}[cfg.projector]
    if in_widths:
        weights = sum(in_widths) * config.width
        params = weights + len(in_widths) * config.width
        flops = 2.0 * weights * cfg.n_patches * with_projector
        costs["projector"] = PartCost(params, params, {"project": TermFlops(flops, flops)})
    params = AttentionPooler.cost(tower, 1).params if cfg.pooling == "attention" else 0
    params += (D + 1) * cfg.num_classes
    if params:
        costs["pooler"] = PartCost(params, params, {})
    return costs


def pooled_cost(config: ModelConfig) -> PartCost:
    """Returns the FLOPs of pooling an image and of projecting it and a text for comparison.

    Its parameters are those of the model, which `compute_cost` counts.
    """
    cfg, tower = config.vision, config.vision_stack()
    is_attention = cfg.pooling == "attention"
    terms = AttentionPooler.cost(tower, cfg.n_tokens).terms if is_attention else {}
    flops = 2.0 * (tower.width + config.width) * cfg.embed_dim
    return PartCost(0, 0, terms | {"joint": TermFlops(flops, flops)})
