"""Prints the cost of a model: `python -m arch.cost configs/hybrid.py:small --length=4096`.

MODEL is a config of this project (FILE.py or FILE.py:SIZE), a run folder or its run.json, or a
model in Hugging Face's format: its folder, its config.json, or owner/name[@revision] of the hub.
No parameter is read or created. A multiply-add counts as 2 FLOPs, and causality is used.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from arch.config import ModelConfig
from arch.cost import Cost, compute_cost
from arch.sequence import View
from data.published.hub_files import download
from data.settings import bpe_size
from data.tokenizers import SPECIAL_TOKENS, ByteTokenizer
from errors import ConfigError
from formatting import format_bytes, format_si
from hub.families import lookup
from hub.hf_config import CONFIG_FILE
from settings.cli import load_config
from settings.flag_parser import count_parser, make_parser
from settings.json_types import JsonObject
from settings.tree import freeze
from settings.types import is_digits
from training.run.cli_errors import run_command
from training.settings import Settings, resolve

RUN_FILE = "run.json"
DEFAULT_LENGTH = 2048  # Tokens per row of a model that does not come with a training length.
DEFAULT_CONTEXTS = (1024, 4096, 16384, 65536, 262144)
DTYPES = ("float32", "bfloat16", "float16")


class PricedModel(NamedTuple):
    """A model whose cost is computed, and how it reads its rows."""

    config: ModelConfig
    view: View
    length: int  # Tokens per row.
    source_length: int = 0  # Tokens of the encoder, or of the prefix.
    logit_fraction: float = 1.0  # Share of the tokens for which logits are computed.
    images: int = 0  # Images per row.
    images_as_prefix: bool = True  # Whether the images enter the text stack.


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments.

    Raises:
        ConfigError: if a flag is unknown or out of range, or the model is missing.
    """
    parser = make_parser("python -m arch.cost", __doc__)
    parser.add_argument("model", metavar="MODEL", help="config, run, or model of the hub")
    parser.add_argument(
        "--length",
        type=count_parser("--length"),
        default=0,
        metavar="T",
        help="tokens per row; by default those of training, "
        f"or {DEFAULT_LENGTH} for a model in Hugging Face's format",
    )
    parser.add_argument(
        "--contexts",
        type=parse_contexts,
        default=DEFAULT_CONTEXTS,
        metavar="T,T,...",
        help="tokens before the one that is decoded "
        f"(default: {','.join(map(str, DEFAULT_CONTEXTS))})",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the decoding state (default: the model's)"
    )
    parser.add_argument(
        "--vocab_size",
        type=count_parser("--vocab_size"),
        default=0,
        metavar="V",
        help="token ids of a config; by default those of its tokenizer",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    return parser.parse_args(argv)


def parse_contexts(text: str) -> tuple[int, ...]:
    """Returns the lengths in a text that separates them by commas.

    Raises:
        ArgumentTypeError: if one of them is not a positive integer.
    """
    names = text.split(",")
    if not all(is_digits(name) and 0 < int(name) < 2**40 for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} must be positive integers such as 1024,65536")
    return tuple(map(int, names))


def read_model(name: str, vocab_size: int = 0) -> PricedModel:
    """Returns the model that a config, a run folder or a name of the hub describes.

    `vocab_size` replaces that of a config or run, if it is not 0.

    Raises:
        ConfigError: if there is no such model, or if it has an option that is not implemented.
    """
    path = Path(name.partition(":")[0] if ".py:" in name else name)
    if (path / RUN_FILE).is_file():
        return _from_settings(str(path / RUN_FILE), vocab_size)
    if path.suffix == ".py" or (path.suffix == ".json" and path.name != CONFIG_FILE):
        return _from_settings(name, vocab_size)
    if path.name == CONFIG_FILE or path.is_dir():
        return _from_hub(path.parent if path.name == CONFIG_FILE else path)
    return _from_hub(download(name, [CONFIG_FILE], needed=f"its {CONFIG_FILE}"))


def _from_settings(spec: str, vocab_size: int) -> PricedModel:
    settings = freeze(Settings, load_config(spec, Settings))
    vocab_size = vocab_size or settings.model.vocab_size or _tokenizer_size(settings.data.tokenizer)
    if not vocab_size:
        raise ConfigError(
            f"{spec} has a tokenizer of unknown size ({settings.data.tokenizer!r}); set "
            "--vocab_size"
        )
    settings = resolve(settings, vocab_size)
    row = settings.row_spec
    length = row.target_length or settings.train.seq_len
    return PricedModel(
        config=settings.model,
        view=row.view,
        length=length,
        source_length=row.source_length,
        logit_fraction=(row.max_targets or length) / length * row.needs_logits,
        images=row.n_images,
        images_as_prefix=row.image_prefix[0] > 0,
    )


def _tokenizer_size(tokenizer: str) -> int:
    """Returns the ids of a tokenizer of this project, 0 for one that must be read."""
    if tokenizer == "bytes":
        return ByteTokenizer().vocab_size
    size = bpe_size(tokenizer)
    return size + len(SPECIAL_TOKENS) if size else 0


def _from_hub(folder: Path) -> PricedModel:
    has_weights = any(folder.glob("*.safetensors"))
    family, config = lookup.detect_family(folder, without_weights=not has_weights)
    view = lookup.VIEW_OF_TASK.get(family.task, "causal")
    source_length = DEFAULT_LENGTH if config.encoder.depth else 0
    return PricedModel(config, view, DEFAULT_LENGTH, source_length)


def cost_record(
    model: PricedModel, length: int = 0, contexts: Sequence[int] = DEFAULT_CONTEXTS
) -> JsonObject:
    """Returns what a model costs, as JSON: parameters, FLOPs per token by term, and decoding.

    Args:
        model: the model.
        length: tokens per row; 0 means `model.length`.
        contexts: numbers of tokens before the one that is decoded.
    """
    length = length or model.length
    cost = _row_cost(model, length)
    decoding = [] if model.view == "bidirectional" else [_decoding(model, n) for n in contexts]
    return {
        "length": length,
        "view": model.view,
        "dtype": model.config.dtype,
        "params": cost.params,
        "active_params": cost.active_params,
        "non_embedding_params": cost.non_embedding_params,
        "params_by_part": dict(cost.parts),
        "forward_flops": cost.model_flops,
        "training_flops": cost.training_flops,
        "head_flops": cost.head_flops,
        "six_n": 6 * cost.active_non_embedding_params,
        "terms": {name: dataclasses.asdict(term) for name, term in cost.terms.items()},
        "decoding": decoding,
    }


def _row_cost(model: PricedModel, length: int) -> Cost:
    return compute_cost(
        model.config,
        length,
        view=model.view,
        source_length=model.source_length,
        logit_fraction=model.logit_fraction,
        images=model.images,
        images_as_prefix=model.images_as_prefix,
    )


def _decoding(model: PricedModel, context: int) -> JsonObject:
    """Returns what one more token costs behind `context` tokens: its FLOPs, and the state."""
    before, after = (_row_cost(model, n) for n in (context, context + 1))
    flops = (context + 1) * after.model_flops - context * before.model_flops
    return {"context": context, "flops": flops, "state_bytes": before.state_bytes}


def make_tables(record: JsonObject) -> list[Table]:
    """Returns the tables of `cost_record`: parameters, FLOPs by term, and decoding."""
    params = Table("part", "parameters", title="Parameters")
    for name, count in record["params_by_part"].items():
        params.add_row(name, f"{count:,}")
    params.add_row("all", f"{record['params']:,}", style="bold")
    params.add_row("used by one token", f"{record['active_params']:,}")
    params.add_row("without embedding and head", f"{record['non_embedding_params']:,}")
    view, length = record["view"], record["length"]
    flops = Table("term", "model", "executed", title=f"FLOPs per token, {view}, {length:,} tokens")
    for name, term in record["terms"].items():
        note = " (elementwise)" if term["elementwise"] else ""
        flops.add_row(name + note, f"{term['model']:,.0f}", f"{term['executed']:,.0f}")
    flops.add_row("forward", f"{record['forward_flops']:,.0f}", "", style="bold")
    flops.add_row("forward and backward", f"{record['training_flops']:,.0f}", "")
    flops.add_row("6 x parameters without embedding and head", f"{record['six_n']:,}", "")
    if not record["decoding"]:
        return [params, flops]
    title = f"Decoding one token ({record['dtype']})"
    decoding = Table("tokens before it", "FLOPs", "state", "bytes of the state", title=title)
    for row in record["decoding"]:
        state = row["state_bytes"]
        decoding.add_row(
            *(f"{row['context']:,}", format_si(row["flops"]), format_bytes(state), f"{state:,}")
        )
    return [params, flops, decoding]


def run(argv: Sequence[str]) -> None:
    """Runs one command line without the program's name."""
    args = parse_args(argv)
    model = read_model(args.model, args.vocab_size)
    if args.dtype:
        config = dataclasses.replace(model.config, dtype=args.dtype)
        model = model._replace(config=config)
    record = cost_record(model, args.length, args.contexts)
    if args.json:
        print(json.dumps(record, indent=1))
        return
    console = Console()
    for table in make_tables(record):
        console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
