"""Prompts to continue: texts, chats whose reply is wanted, and files of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.chats.templates import Messages, Template, reply_prompt
from data.loss_weights import WeightedPart
from data.readers.suffixes import JSON_LINES_SUFFIXES
from errors import DataError


class Prompt(NamedTuple):
    """A prompt and what its tokens are made of."""

    shown: str  # The prompt as it is repeated in the output.
    parts: tuple[WeightedPart, ...]  # Texts that are encoded separately.
    location: str = ""  # Where the prompt stands, for messages about it.


def text_prompt(text: str, location: str = "") -> Prompt:
    """Returns a text as a prompt."""
    return Prompt(text, (WeightedPart(text),), location)


def chat_prompt(messages: Messages, template: Template, location: str = "") -> Prompt:
    """Returns the prompt for a reply to messages.

    Raises:
        DataError: if a role is unknown, or if the last message is a reply.
    """
    shown = messages[-1][1] if messages else ""
    return Prompt(shown, reply_prompt(messages, template), location)


def read_prompts(path: Path, template: Template | None, system: str = "") -> Iterator[Prompt]:
    """Yields the prompts of a file.

    A file *.jsonl or *.ndjson has {"prompt": TEXT} or {"messages": [{"role", "content"}, ...]} on
    each line; any other file has one prompt on each line. With a template, a prompt is the message
    of a user.

    Args:
        path: the file.
        template: the template of chats; None continues texts.
        system: the message of the system before a prompt, with a template.

    Raises:
        DataError: if the file cannot be read, or if a line has no prompt.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"--prompts={path} cannot be read: {reason}") from error
    if not text.strip():
        raise DataError(f"--prompts={path} has no prompts; write one on each line")
    is_json = path.suffix.lower() in JSON_LINES_SUFFIXES
    # Other characters at which `splitlines` divides, such as U+2028, are text.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        location = f"{path}, line {number}"
        record = _parse_line(line, location) if is_json else line
        if record is None:
            continue
        if template is None and not isinstance(record, str):
            raise DataError(f"{location} has messages; --chat answers them")
        if template is None:
            yield text_prompt(str(record), location)
        else:
            messages = with_system(system, record) if isinstance(record, str) else record
            yield _located_chat(messages, template, location)


def with_system(system: str, question: str) -> Messages:
    """Returns the messages of a question, after that of the system if there is one."""
    return [*([("system", system)] if system else []), ("user", question)]


def _located_chat(messages: Messages, template: Template, location: str) -> Prompt:
    try:
        return chat_prompt(messages, template, location)
    except DataError as error:
        raise DataError(f"{location}: {error}") from error


def _parse_line(line: str, location: str) -> str | Messages | None:
    """Returns the prompt or the messages of a line of JSON; None if the line is blank.

    Raises:
        DataError: if the line has neither.
    """
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location} is no JSON: {error}") from error
    if isinstance(record, dict) and isinstance(record.get("prompt"), str):
        return str(record["prompt"])
    messages = record.get("messages") if isinstance(record, dict) else None
    pairs = list[tuple[str, str]]()
    for message in messages if isinstance(messages, list) else []:
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"{location} has a message without a text as role and as content")
        pairs.append((role, content))
    if not pairs:
        raise DataError(f'{location} has neither "prompt", a text, nor "messages", a list')
    return pairs
