r"""Chats as documents of which only the replies count: `{"messages": [{"role", "content"}, ...]}`.

A template defines the text around each message. A reply and its closing marker have weight 1, so
that a model learns to stop. All other text has weight 0. Markers are text: no template makes
special ids.

    chatml   <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n
    vicuna   Be brief. USER: Hello ASSISTANT: Hi</s>
    llama2   [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi
"""

from collections.abc import Sequence
from typing import NamedTuple

from data.loss_weights import WeightedDocument
from data.text_files import ErrorPolicy
from errors import DataError
from settings.json_types import JsonObject

ASSISTANT = "assistant"


class ChatTemplate(NamedTuple):
    """A template has the text before and after a message of each role, and before each exchange."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    exchange_prefix: str = ""


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


def parse_chat(
    record: JsonObject, template: ChatTemplate, location: str, policy: ErrorPolicy
) -> WeightedDocument | None:
    """Returns the document of one chat, or None if the policy skips it."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        fields = ", ".join(list(record)[:8])
        policy.reject_document(
            f"{location} has no list of 'messages'; it holds: {fields}; leave data.chat_template "
            "empty"
        )
        return None
    parts, starts_exchange = list[tuple[str, float]](), True
    for message in messages:
        role, content = _role_and_content(message)
        if role not in ("system", "user", ASSISTANT) or not isinstance(content, str):
            policy.reject_document(
                f"{location} has a message {str(message)[:60]!r}, must have a role (system, user, "
                "assistant) and a content; correct it or set data.on_error to skip"
            )
            return None
        text = policy.check_unicode(content, location)
        if text is None:
            return None
        before, after = template._asdict()[role]
        before = template.exchange_prefix + before if starts_exchange else before
        is_reply = role == ASSISTANT
        if is_reply:
            parts += [(before, 0.0), (text + after, 1.0)]
        else:
            parts += [(before + text + after, 0.0)]
        starts_exchange = is_reply
    if not any(weight for _, weight in parts):
        policy.reject_document(
            f"{location} has no reply by the assistant; add one or set data.on_error to skip"
        )
        return None
    return WeightedDocument(tuple((text, weight) for text, weight in parts if text))


def reply_prompt(messages: Sequence[tuple[str, str]], template: ChatTemplate) -> list[str]:
    """Returns the text before the next reply to messages (role, content).

    The parts are those that training encodes separately.

    Raises:
        DataError: if a role is unknown, or if the last message is a reply.
    """
    parts, starts_exchange = list[str](), True
    for role, content in messages:
        if role not in template._fields[:3]:
            raise DataError(f"a message has the role {role!r}; use system, user or assistant")
        before, after = getattr(template, role)
        before = template.exchange_prefix + before if starts_exchange else before
        starts_exchange = role == ASSISTANT
        parts += [before, content + after] if starts_exchange else [before + content + after]
    if starts_exchange:
        raise DataError("the last message is no question; end the messages with one of the user")
    return [*parts, template.assistant[0]]


def _role_and_content(message: object) -> tuple[object, object]:
    if not isinstance(message, dict):
        return None, None
    return message.get("role"), message.get("content")
