"""Continues texts with a trained model: `generate.py --run=runs/first --prompt="Once upon"`.

The prompt and its continuation are printed as they come. --prompts continues every prompt of a file
and writes JSON lines. --chat answers --prompt, the prompts of a file, or the messages that are
typed. --hub reads a folder of Hugging Face's format instead of a run. Equal flags give equal text.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TextIO

from data.chats.templates import (
    CHAT_TEMPLATES,
    Template,
    describe_chats,
    find_end_of_turn,
    find_template,
)
from data.settings import TOKENIZER_TEMPLATE
from errors import ConfigError, DataError
from eval.generate import Sampling, check_positions
from eval.harness import narrow_to_objective
from eval.load_run import load_run
from eval.prompts import Prompt, chat_prompt, read_prompts, text_prompt, with_system
from eval.text_generation import (
    Continuation,
    TextModel,
    TextRequest,
    continue_texts,
    encode_prompt,
    stream_text,
    text_model,
)
from formatting import replace_control_chars
from hub import checkpoint, vocabulary
from hub.download import resolve_folder
from hub.families import lookup
from settings.flag_parser import add_config_flags, config_from_flags, count_parser, make_parser
from settings.types import NonNegativeInt, Range, Seed, config
from training import mesh as meshes
from training.run.cli_errors import run_command
from training.run.console import LOGGER, Console
from training.text_reading import imported_reading

DEFAULT_NEW_TOKENS = 256  # Fewer if they would not fit a row of training.
DEFAULT_BATCH_SIZE = 32  # Prompts of a model of the hub that are continued at once.
CHUNK_BATCHES = 8  # Batches of prompts between two writes; within them, rows are sorted by length.


@config
class GenerationConfig:
    """How much text is generated, and from which random numbers."""

    # Number of new tokens; 0: those that fill a row of training, at most 256.
    max_new_tokens: Annotated[int, Range(low=0, high=1_000_000)] = 0
    seed: Seed = 0  # Seed of the random numbers.
    # Prompts of --prompts that are continued at once; 0: eval.batch_size of the run.
    batch_size: NonNegativeInt = 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments.

    Raises:
        ConfigError: if a flag is unknown or out of range, or if the model or the prompt is missing.
    """
    parser = make_parser("python -m generate", __doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", type=Path, metavar="DIR", help="run folder that train.py wrote")
    model.add_argument("--hub", metavar="DIR", help="folder, or owner/name[@revision] of the hub")
    parser.add_argument(
        "--step",
        type=count_parser("--step"),
        metavar="N",
        help="step of the checkpoint of --run; by default the newest",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue; with --chat, a message")
    prompt.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='prompts: one on each line, or *.jsonl with {"prompt": ...} or {"messages": [...]}',
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file for the JSON lines of --prompts"
    )
    parser.add_argument(
        "--chat", action="store_true", help="reply to messages; without a prompt, to those typed"
    )
    parser.add_argument(
        "--chat_template",
        choices=[*CHAT_TEMPLATES, TOKENIZER_TEMPLATE],
        help="template of --chat; by default that of the run (data.chat_template), or of the files "
        "of the tokenizer's model (tokenizer)",
    )
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="message of the system, with --chat"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="text before which a continuation ends; may be given several times",
    )
    add_config_flags(parser, Sampling)
    add_config_flags(parser, GenerationConfig)
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    _check_flags(args)
    return args


def _check_flags(args: argparse.Namespace) -> None:
    if args.prompt is None and args.prompts is None and not args.chat:
        raise ConfigError("there is no prompt; give --prompt=TEXT, --prompts=FILE or --chat")
    if args.out and not args.prompts:
        raise ConfigError(f"--out={args.out} is the file for --prompts; leave it out")
    if args.out and args.out.exists():
        raise ConfigError(f"--out={args.out} exists already; give another file")
    if (args.system or args.chat_template) and not args.chat:
        raise ConfigError("--system and --chat_template need --chat; add it")


def run(argv: Sequence[str]) -> None:
    """Continues the prompts that the flags in `argv` name."""
    args = parse_args(argv)
    console = Console("plain", total_steps=0, file=sys.stderr)
    console.open()
    try:
        target, template = load_target(args)
        if args.prompts:
            write_continuations(target, template, args)
        elif args.prompt is not None:
            prompt = text_prompt(args.prompt)
            if template:
                prompt = chat_prompt(with_system(args.system, args.prompt), template)
            else:
                _write(prompt.shown)
            print_continuation(target, make_request(target, prompt, 0, template, args), args)
        elif template:
            converse(target, template, args)
    finally:
        console.close()


def load_target(args: argparse.Namespace) -> tuple[TextModel, Template | None]:
    """Returns the model, and the template of its chats (None without --chat).

    Raises:
        ConfigError: if --chat has no template.
    """
    name = args.chat_template or ""
    if args.hub:
        target = load_hub_model(args.hub)
        hint = "the folder has none (chat_template.jinja, tokenizer_config.json)"
    else:
        ctx = load_run(args.run, args.step)[0]
        target = text_model(narrow_to_objective(ctx, "causal_lm"))
        name = name or ctx.settings.data.chat_template
        hint = "the run was trained on no chats (data.chat_template)"
    if args.batch_size:
        target = target._replace(batch_size=args.batch_size)
    if not args.chat:
        return target, None
    name = name or TOKENIZER_TEMPLATE * bool(target.tokenizer.framing.chat_template)
    if not name:
        raise ConfigError(f"--chat needs a template; {hint}; give --chat_template")
    for label, text in describe_chats(name, target.tokenizer):
        if label != "trained on":
            LOGGER.info("chats: %s %s", label, text)
    template = find_template(name, target.tokenizer)
    return _with_stop(target, find_end_of_turn(template, target.tokenizer).token_id), template


def _with_stop(target: TextModel, token_id: int) -> TextModel:
    """Returns the model with a further id that ends a continuation; -1 is none."""
    if token_id < 0:
        return target
    stop_ids = tuple(sorted({*target.reads.stop_ids, token_id}))
    return target._replace(reads=target.reads._replace(stop_ids=stop_ids))


def load_hub_model(name: str) -> TextModel:
    """Returns the causal model of a folder of Hugging Face's format.

    Raises:
        ConfigError: if the model is not causal.
        DataError: if the folder has no tokenizer.json.
    """
    folder = resolve_folder(name)
    family, model_config = lookup.detect_family(folder)
    if family.task != "causal":
        raise ConfigError(
            f"{folder} is a {family.architecture}, which does not continue texts; give a causal "
            "model"
        )
    tokenizer = vocabulary.load_tokenizer(folder, model_config)
    if tokenizer is None:
        raise DataError(f"{folder} has no tokenizer.json; add that of the model")
    mesh = meshes.make_mesh(meshes.MeshConfig())
    model = checkpoint.load_model(folder, family, model_config, mesh)
    positions = model_config.positions
    limit = positions.max_length if positions.learned else 0
    reads = imported_reading(tokenizer.framing, 0, limit)
    return TextModel(model, mesh, tokenizer, reads, DEFAULT_BATCH_SIZE)


def make_request(
    target: TextModel,
    prompt: Prompt,
    number: int,
    template: Template | None,
    args: argparse.Namespace,
) -> TextRequest:
    """Returns the request for the continuation of a prompt.

    Raises:
        ConfigError: if the model has too few positions.
    """
    ids, window = encode_prompt(target.tokenizer, target.reads, prompt.parts), target.reads.window
    room = window - len(ids) if window else DEFAULT_NEW_TOKENS
    fitting = min(room, DEFAULT_NEW_TOKENS) if room > 0 else DEFAULT_NEW_TOKENS
    n_new = args.max_new_tokens or fitting
    where = f"{prompt.location}: " if prompt.location else ""
    try:
        check_positions(target.model, len(ids), n_new)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error
    if window and n_new > room:
        LOGGER.warning(
            "%s%d tokens of the prompt and %d new ones exceed the window of %d tokens that the "
            "model was trained on; it may write worse beyond it",
            *(where, len(ids), n_new, window),
        )
    stops = list(args.stop)
    if template:
        end = find_end_of_turn(template, target.tokenizer)
        stops += [end.text] if end.text and end.token_id < 0 else []
    return TextRequest(number, ids, n_new, tuple(stops), config_from_flags(Sampling, args))


def print_continuation(
    target: TextModel, request: TextRequest, args: argparse.Namespace
) -> Continuation:
    """Prints a continuation as it comes, and returns it."""
    pieces = stream_text(target, request, args.seed)
    while True:
        try:
            _write(next(pieces))
        except StopIteration as end:
            _write("\n")
            result: Continuation = end.value
            return result


def converse(target: TextModel, template: Template, args: argparse.Namespace) -> None:
    """Replies to each line of stdin, after all messages before it."""
    messages = [*with_system(args.system, "")][:-1]
    number = 0
    while (question := _read_question()) is not None:
        if not question.strip():
            continue
        messages.append(("user", question))
        request = make_request(target, chat_prompt(messages, template), number, template, args)
        messages.append(("assistant", print_continuation(target, request, args).text.strip()))
        number += 1


def write_continuations(
    target: TextModel, template: Template | None, args: argparse.Namespace
) -> None:
    """Writes one line of JSON for each prompt of the file, in its order, as batches end."""
    prompts = list(read_prompts(args.prompts, template, args.system))
    requests = [make_request(target, p, i, template, args) for i, p in enumerate(prompts)]
    with ExitStack() as stack:
        out = stack.enter_context(args.out.open("x", encoding="utf-8")) if args.out else sys.stdout
        for start in range(0, len(requests), CHUNK_BATCHES * target.batch_size):
            chunk = requests[start : start + CHUNK_BATCHES * target.batch_size]
            results = continue_texts(target, chunk, args.seed)
            for prompt, result in zip(prompts[start:], results, strict=False):
                _write_line(out, prompt, result)
            LOGGER.info("%d of %d prompts", start + len(chunk), len(requests))


def _write_line(out: TextIO, prompt: Prompt, result: Continuation) -> None:
    row = {"prompt": prompt.shown, "text": result.text, "new_tokens": result.n_tokens}
    print(
        json.dumps(row | {"finish_reason": result.finish_reason}, ensure_ascii=False),
        file=out,
        flush=True,
    )


def _read_question() -> str | None:
    """Returns the next line of stdin, None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _write(text: str) -> None:
    """Prints a piece of text; a terminal gets no control characters, which it would obey."""
    if sys.stdout.isatty():
        text = "\t".join(map(replace_control_chars, text.split("\t")))
    print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
