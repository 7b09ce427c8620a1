"""Chat templates of published models: programs in Jinja, run in a sandbox without files or network.

A reply is what a program adds to the text before it (`add_generation_prompt`) when the reply's
message is added. The functions are those of transformers, without `strftime_now`: equal chats give
equal text on every day. A program that takes long, or that makes a long text, is stopped.
"""

import functools
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from data.loss_weights import WeightedPart
from data.tokenizers import Tokenizer
from errors import DataError

MAX_SECONDS = 5  # Time that a program may take for one chat.
MAX_REPEATED = 1 << 20  # Largest product of a text or list and a number.
PROBE_REPLY = "\ue000"  # A reply that no template writes itself (private use area).
PLACEHOLDERS = range(0xE100, 0xF8FF)  # Stand for special tokens that a message spells.
Messages = Sequence[tuple[str, str]]  # (role, content), in order


class TemplateProgram:
    """A template that is a program; `data/chats/templates.py` describes the interface."""

    def __init__(self, source: str, tokenizer: Tokenizer):
        self._source = source
        self._tokenizer = tokenizer
        specials = tokenizer.specials
        self._tokens = {
            name: tokenizer.decode_marked([token]) if token >= 0 else ""
            for name, token in (
                *(("bos_token", specials.bos), ("eos_token", specials.eos)),
                *(("pad_token", specials.pad), ("unk_token", specials.unk)),
            )
        }
        # A marker that a message spells is another character until the text is cut at it.
        texts = sorted(tokenizer.special_texts, key=len, reverse=True)
        self._stand_ins = dict(zip(texts, map(chr, PLACEHOLDERS), strict=False))
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            raise DataError(f"the chat template is no program in Jinja: {_line(error)}") from error

    def document(self, messages: Messages) -> tuple[WeightedPart, ...]:
        """Returns the parts of a chat; replies and what ends them have weight 1.

        Raises:
            DataError: if the program fails, or writes earlier messages otherwise later on.
        """
        text = self.render(messages, False)
        parts, start = list[WeightedPart](), 0
        for i, (role, _) in enumerate(messages):
            if role != "assistant":
                continue
            before = self.render(messages[:i], True)
            after = self.render(messages[: i + 1], False)
            if not after.startswith(before) or not text.startswith(after):
                raise DataError(
                    "the chat template writes earlier messages otherwise once a reply follows, so "
                    "that replies cannot be told from the rest; use data.chat_template=chatml"
                )
            parts += [self._part(text[start : len(before)], 0.0)]
            parts += [self._part(text[len(before) : len(after)], 1.0)]
            start = len(after)
        parts.append(self._part(text[start:], 0.0))
        return tuple(part for part in parts if part.text)

    def prompt(self, messages: Messages) -> tuple[WeightedPart, ...]:
        """Returns the text before the next reply.

        It is one part, as the published model was trained on it.
        """
        return (self._part(self.render(messages, True), 0.0),)

    def text(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Returns the text of a chat, as the program writes it."""
        return self._part(self.render(messages, add_generation_prompt), 0.0).text

    @functools.cached_property
    def end_of_turn(self) -> str:
        """The marker that ends a reply; "" if there is none."""
        text = self.render([("user", "Hello"), ("assistant", PROBE_REPLY)], False)
        ending = text.partition(PROBE_REPLY)[2].strip()
        specials = sorted(self._tokenizer.special_texts, key=len, reverse=True)
        return next((x for x in specials if ending.startswith(x)), ending)

    def as_jinja(self, bos: bool) -> str:
        """Returns the program as it was read, which frames chats itself."""
        return self._source

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Returns the text of a chat; special tokens that messages spell are stand-ins.

        Raises:
            DataError: if the program fails.
        """
        listed = [{"role": role, "content": self._hide(content)} for role, content in messages]
        try:
            with _time_limit(MAX_SECONDS):
                text = self._template.render(
                    messages=listed,
                    tools=None,  # None is defined, and programs ask for both.
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._tokens,
                )
        except (Exception, MemoryError) as error:  # A program can raise anything.
            raise DataError(
                f"the chat template fails: {_line(error)}; use data.chat_template=chatml, or "
                "correct the template"
            ) from error
        return text

    def _hide(self, content: str) -> str:
        for special, stand_in in self._stand_ins.items():
            content = content.replace(special, stand_in)
        return content

    def _part(self, text: str, weight: float) -> WeightedPart:
        """Returns a part; where a stand-in was, the special token is spelled as text."""
        specials = {stand_in: special for special, stand_in in self._stand_ins.items()}
        pieces, plain, length = list[str](), list[tuple[int, int]](), 0
        for character in text:
            piece = specials.get(character, character)
            if piece is not character:
                plain.append((length, length + len(piece)))
            pieces.append(piece)
            length += len(piece)
        return WeightedPart("".join(pieces), weight, tuple(plain))


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A sandbox whose programs cannot make huge values by an operator."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: object, right: object
    ) -> object:
        """Applies an operator.

        Raises:
            SecurityError: if the result would be huge.
        """
        sizes = [len(x) if isinstance(x, str | list | tuple) else x for x in (left, right)]
        is_small = all(isinstance(x, int | float) and abs(x) <= MAX_REPEATED for x in sizes)
        if not is_small or (operator == "**" and abs(float(sizes[1])) > 64):  # type: ignore[arg-type]
            raise jinja2.exceptions.SecurityError(f"{operator} would give a huge value")
        if operator == "*" and abs(float(sizes[0]) * float(sizes[1])) > MAX_REPEATED:  # type: ignore[arg-type]
            raise jinja2.exceptions.SecurityError(f"{operator} would give a huge value")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, which marks replies; its content is written as it is."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Returns the content of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = _to_json
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter of transformers, which escapes nothing for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stops the body after `seconds`; only the main thread can be stopped.

    Raises:
        TimeoutError: if the time is over.
    """

    def stop(*_: object) -> NoReturn:
        raise TimeoutError(f"it takes more than {seconds:g} seconds")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _line(error: BaseException) -> str:
    """Returns what is wrong in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
