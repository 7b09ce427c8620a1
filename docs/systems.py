"""The page of published systems, computed from their presets: `python docs/systems.py` writes it.

Parameters, FLOPs and states are those that `python -m arch.cost` counts for a preset, so that the
page cannot differ from the code.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from arch.cost.__main__ import cost_record, read_model  # noqa: E402
from formatting import format_bytes, format_si  # noqa: E402

LENGTH = 2048  # Tokens of a row, where the model has no fewer positions.
T5_LENGTH = 512  # Tokens that T5 and Switch read, and those that they write.


class System(NamedTuple):
    """A published system, and what stands for it here."""

    name: str
    source: str  # Paper, or page of its authors.
    preset: str  # FAMILY:SIZE of configs/families, or FOLDER/NAME:SIZE of configs.
    goldens: tuple[str, ...]  # Reference checkpoints below tests/goldens/hf or vision.
    remark: str


SYSTEMS = (
    System(
        "GPT-2",
        "Radford et al. 2019",
        "gpt2:1.5b",
        ("gpt2", "gpt2_hub", "gpt2_scaled_by_layer"),
        "decoder, learned positions",
    ),
    System(
        "GPT-3",
        "arXiv:2005.14165",
        "gpt2:175b",
        ("gpt2",),
        "GPT-2 at another size; the paper's alternating sparse attention is dense here",
    ),
    System("BERT", "arXiv:1810.04805", "bert:large", ("bert", "bert_gamma_beta"), "encoder"),
    System(
        "T5",
        "arXiv:1910.10683",
        "t5:11b",
        ("t5_v1_0", "t5_10_buckets", "t5_v1_1"),
        "encoder-decoder, relative positions",
    ),
    System(
        "Switch Transformer",
        "arXiv:2101.03961",
        "switch:base-128",
        ("switch_transformers",),
        "T5 with one expert of 128 in every second layer",
    ),
    System(
        "CodeGen",
        "arXiv:2203.13474",
        "codegen:16b",
        ("codegen",),
        "decoder, parallel attention and MLP, rotary positions",
    ),
    System("OPT", "arXiv:2205.01068", "opt:175b", ("opt", "opt_350m"), "decoder"),
    System("BLOOM", "arXiv:2211.05100", "bloom:176b", ("bloom",), "decoder, ALiBi"),
    System(
        "Falcon",
        "arXiv:2311.16867",
        "falcon:180b",
        ("falcon_7b", "falcon_40b", "falcon_11b"),
        "decoder, grouped keys",
    ),
    System("LLaMA 2", "arXiv:2307.09288", "llama2:70b", ("llama2",), "decoder, grouped keys"),
    System(
        "Vicuna",
        "lmsys.org/blog/2023-03-30-vicuna",
        "vicuna:13b",
        ("llama2", "vicuna_linear_rope"),
        "LLaMA after training on chats (`configs/post_training/chat.py`)",
    ),
    System("XGen", "arXiv:2309.03450", "xgen:7b", ("llama2",), "LLaMA with another vocabulary"),
    System("Mistral", "arXiv:2310.06825", "mistral:7b", ("mistral",), "decoder, window of 4,096"),
    System("Mixtral", "arXiv:2401.04088", "mixtral:8x7b", ("mixtral",), "two experts of 8"),
    System("Mamba", "arXiv:2312.00752", "mamba:2.8b", ("mamba",), "state space model"),
    System(
        "LLaVA 1.5",
        "arXiv:2310.03744",
        "images/llava:7b",
        ("llava", "clip"),
        "open counterpart of GPT-4 with vision: Vicuna behind the patches of CLIP's tower",
    ),
)

COST_COLUMNS = (
    *("system", "preset", "parameters", "used by a token", "tokens", "FLOPs a token"),
    *("state of a sequence", "of a token", "what it is"),
)
PARITY_COLUMNS = ("system", "source", "reference checkpoints", "a tiny one")
HEAD = f"""# Published systems and their presets

The systems that this project was made to compare, each with the largest preset of its family. A
preset is a config of the one backbone. Parameters are counted from its shapes, and
`tests/hub/test_families.py` compares them with the published counts. FLOPs are model FLOPs of the
forward pass for each token of a row, logits of every token included, with a multiply-add as 2 and
causality used. Rows have {LENGTH:,} tokens or as many as the model has positions; T5 and Switch
read {T5_LENGTH} tokens and write {T5_LENGTH}, and the encoder is part of a written token. State is
what decoding keeps for one sequence of that length in bfloat16, and what its last token added.
`python -m arch.cost configs/families/NAME.py:SIZE` prints all terms, and `python docs/systems.py`
writes this page.

"""
PARITY = """
## Parity, and a tiny one

Reference checkpoints in `tests/goldens/hf` and `tests/goldens/vision` were made with Hugging Face
transformers. In float64 the logits of an imported checkpoint agree with them to 1e-8 of their RMS,
which `tests/hub/test_hub_families.py` and `test_hub_vision.py` check. Every preset also trains at
the size `tiny` on two CPU cores.

"""


def render() -> str:
    """Returns the page as Markdown."""
    costs = map(_cost_cells, SYSTEMS)
    return HEAD + _table(COST_COLUMNS, costs) + PARITY + _table(PARITY_COLUMNS, _parity_cells())


def config_file(system: System) -> tuple[str, str]:
    """Returns the config of a system, below configs/, and the size."""
    path, _, size = system.preset.partition(":")
    return (path if "/" in path else f"families/{path}") + ".py", size


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cost_cells(system: System) -> tuple[str, ...]:
    path, size = config_file(system)
    model = read_model(str(ROOT / f"configs/{path}:{size}"))
    config = dataclasses.replace(model.config, dtype="bfloat16")
    positions = config.positions.max_length if config.positions.learned else LENGTH
    length = T5_LENGTH if config.encoder.depth else min(positions, LENGTH)
    source_length = T5_LENGTH if config.encoder.depth else 0
    model = model._replace(config=config, source_length=source_length, logit_fraction=1.0)
    record = cost_record(model, length, (length - 1, length))
    states = [row["state_bytes"] for row in record["decoding"]]
    state, of_token = ("none", "none")
    if states:
        state, of_token = format_bytes(states[1]), format_bytes(states[1] - states[0])
    return (
        *(system.name, f"`{path.removeprefix('families/')}:{size}`"),
        *(f"{record['params']:,}", f"{record['active_params']:,}", f"{length:,}"),
        *(format_si(record["forward_flops"]), state, of_token, system.remark),
    )


def _parity_cells() -> Iterator[tuple[str, ...]]:
    for system in SYSTEMS:
        names = ", ".join(f"`{name}`" for name in system.goldens)
        yield system.name, system.source, names, f"`configs/{config_file(system)[0]}:tiny`"


if __name__ == "__main__":
    Path(__file__).with_name("systems.md").write_text(render(), "utf-8")
