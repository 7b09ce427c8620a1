r"""Chats as documents of which only the replies count: `{"messages": [{"role", "content"}, ...]}`.

A template defines the text around each message. A reply and its closing marker have weight 1, so
that a model learns to stop. All other text has weight 0. Where the tokenizer has a marker as a
special token, its id stands for it (`data/chats/marked_text.py`); else a marker is text.

    chatml     <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n
    vicuna     Be brief. USER: Hello ASSISTANT: Hi</s>
    llama2     [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi
    tokenizer  the template in the files of the tokenizer's model (`data/chats/program.py`)
"""

import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from data.chats.program import TemplateProgram
from data.loss_weights import WeightedDocument, WeightedPart
from data.readers.read_policy import ErrorPolicy, describe_field
from data.settings import TOKENIZER_TEMPLATE
from data.tokenizers import Tokenizer
from errors import ConfigError, DataError
from settings.json_types import JsonObject

ASSISTANT = "assistant"
ROLES = ("system", "user", ASSISTANT)
MARKER_RULE = 3  # Version of the rule by which parts become ids; part of the cache's key.

Messages = Sequence[tuple[str, str]]  # (role, content), in order


class Template(Protocol):
    """A template makes the text of a chat."""

    def document(self, messages: Messages) -> tuple[WeightedPart, ...]:
        """Returns the parts of a chat; replies and what ends them have weight 1."""

    def prompt(self, messages: Messages) -> tuple[WeightedPart, ...]:
        """Returns the parts before the next reply; they are those that training encodes."""

    def text(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Returns the text of a chat; with `add_generation_prompt` that before the next reply."""

    @property
    def end_of_turn(self) -> str:
        """The marker that ends a reply; "" if there is none."""

    def as_jinja(self, bos: bool) -> str:
        """Returns the template as a program in Jinja, as transformers reads it.

        Args:
            bos: whether a chat begins with the token bos.
        """


class ChatTemplate(NamedTuple):
    """A template has the text before and after a message of each role, and before each exchange."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    exchange_prefix: str = ""

    def document(self, messages: Messages) -> tuple[WeightedPart, ...]:
        """Returns the parts of a chat; see `Template`."""
        parts, starts_exchange = list[WeightedPart](), True
        for role, content in messages:
            before, after = self._around(role)
            before = self.exchange_prefix + before if starts_exchange else before
            starts_exchange = role == ASSISTANT
            if starts_exchange:
                reply = WeightedPart(content + after, 1.0, ((0, len(content)),))
                parts += [WeightedPart(before, 0.0, ()), reply]
            else:
                spot = (len(before), len(before) + len(content))
                parts.append(WeightedPart(before + content + after, 0.0, (spot,)))
        return tuple(part for part in parts if part.text)

    def prompt(self, messages: Messages) -> tuple[WeightedPart, ...]:
        """Returns the parts before the next reply; see `Template`."""
        before = self.exchange_prefix * (not messages or messages[-1][0] == ASSISTANT)
        reply = WeightedPart(before + self.assistant[0], 0.0, ())
        # A reply counts in training alone.
        parts = [part._replace(weight=0.0) for part in self.document(messages)]
        return (*parts, reply) if reply.text else tuple(parts)

    def text(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Returns the text of a chat; see `Template`."""
        parts = self.prompt(messages) if add_generation_prompt else self.document(messages)
        return "".join(part.text for part in parts)

    @property
    def end_of_turn(self) -> str:
        """The marker that ends a reply; "" if there is none."""
        return self.assistant[1].strip()

    def as_jinja(self, bos: bool) -> str:
        """Returns the template as a program in Jinja; see `Template`."""
        prefix, reply = _literal(self.exchange_prefix), _literal(self.assistant[0])
        cases = [
            f"{{%- {'elif' if i else 'if'} message['role'] == '{role}' -%}}"
            f"{{{{- {_literal(before)} + message['content'] + {_literal(after)} -}}}}"
            for i, role in enumerate(ROLES)
            for before, after in (self._around(role),)
        ]
        return "".join(
            [
                "{{- bos_token -}}" if bos else "",
                "{%- set ns = namespace(starts=true) -%}{%- for message in messages -%}",
                f"{{%- if ns.starts -%}}{{{{- {prefix} -}}}}{{%- endif -%}}",
                *cases,
                "{%- else -%}{{- raise_exception('unknown role ' + message['role']) -}}",
                f"{{%- endif -%}}{{%- set ns.starts = message['role'] == '{ASSISTANT}' -%}}",
                "{%- endfor -%}{%- if add_generation_prompt -%}",
                f"{{%- if ns.starts -%}}{{{{- {prefix} -}}}}{{%- endif -%}}{{{{- {reply} -}}}}",
                "{%- endif -%}",
            ]
        )

    def _around(self, role: str) -> tuple[str, str]:
        if role not in ROLES:
            raise DataError(f"a message has the role {role!r}; use system, user or assistant")
        around: tuple[str, str] = self._asdict()[role]
        return around


CHAT_TEMPLATES = {
    "chatml": ChatTemplate(
        ("<|im_start|>system\n", "<|im_end|>\n"),
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", "<|im_end|>\n"),
    ),
    "vicuna": ChatTemplate(("", " "), ("USER: ", " "), ("ASSISTANT: ", "</s>")),
    "llama2": ChatTemplate(
        ("<<SYS>>\n", "\n<</SYS>>\n\n"), ("", " [/INST]"), (" ", " "), exchange_prefix="[INST] "
    ),
}


def find_template(name: str, tokenizer: Tokenizer) -> Template:
    """Returns the template of this name (`data.chat_template`).

    Raises:
        ConfigError: if it is the tokenizer's, whose files have none.
    """
    if name != TOKENIZER_TEMPLATE:
        return CHAT_TEMPLATES[name]
    source = tokenizer.framing.chat_template
    if not source:
        raise ConfigError(
            f"the chat template is {name!r}, but the files of the tokenizer have none "
            f"(chat_template.jinja, tokenizer_config.json); use {', '.join(CHAT_TEMPLATES)}"
        )
    return TemplateProgram(source, tokenizer)


def parse_chat(
    record: JsonObject, template: Template, location: str, policy: ErrorPolicy
) -> WeightedDocument | None:
    """Returns the document of one chat, or None if the policy skips it."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        described = describe_field(record, "messages", "list of messages")
        policy.reject_document(
            f"{location}: {described}; correct it, or leave data.chat_template empty"
        )
        return None
    pairs = list[tuple[str, str]]()
    for message in messages:
        role, content = _role_and_content(message)
        if role not in ROLES or not isinstance(content, str):
            policy.reject_document(
                f"{location} has a message {str(message)[:60]!r}, must have a role (system, user, "
                "assistant) and a content; correct it or set data.on_error to skip"
            )
            return None
        text = policy.check_unicode(content, location)
        if text is None:
            return None
        pairs.append((str(role), text))
    try:
        parts = template.document(pairs)
    except DataError as error:
        policy.reject_document(f"{location}: {error}")
        return None
    if not any(part.weight for part in parts):
        policy.reject_document(
            f"{location} has no reply by the assistant; add one or set data.on_error to skip"
        )
        return None
    return WeightedDocument(parts)


def reply_prompt(messages: Messages, template: Template) -> tuple[WeightedPart, ...]:
    """Returns the text before the next reply to messages.

    The parts are those that training encodes separately.

    Raises:
        DataError: if a role is unknown, or if the last message is a reply.
    """
    if not messages or messages[-1][0] == ASSISTANT:
        raise DataError("the last message is no question; end the messages with one of the user")
    return template.prompt(messages)


class EndOfTurn(NamedTuple):
    """What ends a reply: a special token of the tokenizer, or else a text."""

    text: str  # The marker; "" if the template has none.
    token_id: int  # The id of the marker; -1 if it is no special token.


def find_end_of_turn(template: Template, tokenizer: Tokenizer) -> EndOfTurn:
    """Returns what ends a reply, as the tokenizer encodes it."""
    text = template.end_of_turn
    is_special = text in tokenizer.special_texts
    return EndOfTurn(text, tokenizer.token_id(text) if is_special else -1)


class ChatExport(NamedTuple):
    """What an exported model needs to reply as in training."""

    jinja: str  # The program of chat_template.jinja.
    end_of_turn: EndOfTurn


def export_template(name: str, tokenizer: Tokenizer) -> ChatExport | None:
    """Returns the template of a run for transformers, or None if `name` is "" (no chats)."""
    if not name:
        return None
    template = find_template(name, tokenizer)
    bos = tokenizer.specials.bos
    begins_with_bos = bos >= 0 and bos in tokenizer.framing.document_prefix
    return ChatExport(template.as_jinja(begins_with_bos), find_end_of_turn(template, tokenizer))


def describe_chats(name: str, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Returns lines (name, text) that say how chats are read: what counts, and what ends a turn."""
    end = find_end_of_turn(find_template(name, tokenizer), tokenizer)
    marker = json.dumps(end.text, ensure_ascii=False)
    kind = f"the special token {end.token_id}" if end.token_id >= 0 else "text, no special token"
    label = "that of the tokenizer's files" if name == TOKENIZER_TEMPLATE else name
    if name != TOKENIZER_TEMPLATE and tokenizer.framing.chat_template:
        label += " (the tokenizer's files have another: data.chat_template=tokenizer)"
    return [
        ("template", label),
        ("trained on", "the replies of the assistant and what ends them; all else has weight 0"),
        ("a turn ends with", f"{marker}, {kind}" if end.text else "the end of the document alone"),
    ]


def _literal(text: str) -> str:
    """Returns a text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def _role_and_content(message: object) -> tuple[object, object]:
    if not isinstance(message, dict):
        return None, None
    return message.get("role"), message.get("content")
