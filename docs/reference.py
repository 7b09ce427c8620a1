"""The page of all settings, read off the dataclasses: type, default and the comment beside each."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from training.flags import described
from training.settings import Settings
from training.tree import hints_of, is_section, shown

HEAD = """# Settings

Every setting is a flag, `--config.KEY=VALUE`, and a line of a config file, `c.KEY = VALUE`. Config
files hold only what differs from these defaults. This page is generated from the dataclasses that
the code reads.
"""

# Of fields that say all to a reader of the code, by the end of their key.
PLAIN = {
    "seed": "of initialisation, data order and dropout",
    "objective": "what the model learns to do",
    "model.final_norm": "a norm after the last block",
    "embed.dropout": "of embeddings, in training",
    "positions.learned": "a table of positions, added to the embeddings",
    "norm.kind": "RMSNorm or LayerNorm",
    "norm.eps": "added to the mean square or variance",
    "norm_eps": "of the part's own norm",
    "block.wiring": "where norms stand around mixer and channel",
    "head.bias": "of the logits",
    "head.transform_activation": "of the transform",
    "head.transform_bias": "a bias in it",
    "pooler.kind": "what is made of the first token's state, beside the head",
    "rope.scaling": "how frequencies change for texts longer than the model was trained on",
    "moe.router_bias": "of the router's logits",
    "bias_qkv": "of the projections to queries, keys and values",
    "bias_out": "of the output projection",
    "implementation": "of the operation; auto: by platform",
    "conv_bias": "of the short convolution",
    "step.low": "the smallest step at the start",
    "step.high": "the largest step at the start",
    "step.floor": "no initial step is below it",
    "qk_norm_eps": "of the norms of queries and keys",
    "gated": "one half gates the other (SwiGLU, GeGLU)",
    "activation": "between the two matrices",
    "mlp.bias": "of both matrices",
    "contrastive.temperature": "cosines are divided by it",
    "contrastive.pooling": "how the hidden states of a text become one vector",
    "contrastive.projection": "of pooled vectors, before they are compared",
    "mixture.parts": "objectives and their coefficients in the loss",
    "data.test_path": "files of the test split",
    "data.test_share": "of documents without a split",
    "optimizer.name": "the rule of the update",
    "optimizer.schedule": "of the learning rate",
    "beta1": "decay of the mean of gradients",
    "beta2": "decay of the mean of their squares",
    "optimizer.eps": "added to the root of the mean square",
    "on_nonfinite": "what a loss or gradient that is not finite does",
}


def settings() -> str:
    """Markdown of the whole tree, a table for each section."""
    return "\n".join([HEAD, *_section(Settings, "")])


def _section(cls: Any, prefix: str) -> Iterator[str]:
    hints, notes = hints_of(cls), comments(cls)
    defaults = {field.name: getattr(cls(), field.name) for field in dataclasses.fields(cls)}
    own = [name for name in hints if not is_section(hints[name])]
    if own:
        title = prefix.removesuffix(".") or "seed and objective"
        yield f"\n## {title}\n"
        if prefix and (text := inspect.getdoc(cls)) and not text.startswith(f"{cls.__name__}("):
            yield f"{' '.join(text.split())}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name in own:
        cells = (
            described(hints[name]),
            shown(defaults[name]),
            notes.get(name) or plain(prefix + name),
        )
        kind, value, note = (str(cell).replace("|", "\\|") for cell in cells)
        yield f"| `{prefix}{name}` | {kind} | `{value or '()'}` | {note} |"
    for name in hints:
        if is_section(hints[name]):
            yield from _section(hints[name], f"{prefix}{name}.")


def plain(key: str) -> str:
    """The meaning of a field without a comment; KeyError if nobody wrote one."""
    try:
        return next(text for end, text in PLAIN.items() if f".{key}".endswith(f".{end}"))
    except StopIteration:
        raise KeyError(f"{key} has no comment beside it; write one") from None


def comments(cls: type) -> dict[str, str]:
    """What stands beside the fields of a dataclass, or above them."""
    if cls.__module__ not in sys.modules:
        return {}
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    (tree,) = ast.parse("\n".join(lines)).body
    found = {}
    for node in tree.body if isinstance(tree, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            end = lines[(node.end_lineno or 1) - 1][node.end_col_offset :]
            above, at = list[str](), node.lineno - 2
            while lines[at].strip().startswith("#"):
                above.insert(0, lines[at].strip(" #"))
                at -= 1
            beside = end.partition("#")[2].strip()
            found[node.target.id] = beside or " ".join(above)
    return found
