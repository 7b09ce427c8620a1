"""Chats as documents of which only the replies count: `{"messages": [{"role", "content"}, ...]}`.

A template says what stands around a message. A reply counts with what closes it, so that a model
learns to stop; all else has weight 0. Markers are text: no template makes special ids.

    chatml   <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHi<|im_end|>\\n
    vicuna   Be brief. USER: Hello ASSISTANT: Hi</s>
    llama2   [INST] <<SYS>>\\nBe brief.\\n<</SYS>>\\n\\nHello [/INST] Hi
"""

from typing import Any, NamedTuple

from data.files import Policy
from data.weighed import Weighed

REPLY = "assistant"


class Template(NamedTuple):
    """What stands before and after a message of each role, and before every exchange."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    opens: str = ""


TEMPLATES = {
    "chatml": Template(
        ("<|im_start|>system\n", "<|im_end|>\n"),
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", "<|im_end|>\n"),
    ),
    "vicuna": Template(("", " "), ("USER: ", " "), ("ASSISTANT: ", "</s>")),
    "llama2": Template(
        ("<<SYS>>\n", "\n<</SYS>>\n\n"), ("", " [/INST]"), (" ", " "), opens="[INST] "
    ),
}


def chat(record: dict[str, Any], template: Template, where: str, policy: Policy) -> Weighed | None:
    """The document of one chat; None: it was counted and left out."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        held = ", ".join(list(record)[:8])
        policy.refuse(f"{where} has no list of 'messages'; it holds: {held}; leave data.chat empty")
        return None
    parts, begins = list[tuple[str, float]](), True
    for message in messages:
        role, content = _message(message)
        if role not in ("system", "user", REPLY) or not isinstance(content, str):
            policy.refuse(
                f"{where} has a message {str(message)[:60]!r}, must have a role (system, user, "
                "assistant) and a content; mend it or set data.errors to skip"
            )
            return None
        sound = policy.wellformed(content, where)
        if sound is None:
            return None
        before, after = template._asdict()[role]
        before = template.opens + before if begins else before
        reply = role == REPLY
        parts += [(before, 0.0), (sound + after, 1.0)] if reply else [(before + sound + after, 0.0)]
        begins = reply
    if not any(weight for _, weight in parts):
        policy.refuse(f"{where} has no reply by the assistant; add one or set data.errors to skip")
        return None
    return Weighed(tuple((text, weight) for text, weight in parts if text))


def _message(message: Any) -> tuple[Any, Any]:
    if not isinstance(message, dict):
        return None, None
    return message.get("role"), message.get("content")
