"""Preferences: records of a prompt, the reply that is chosen, and one that is rejected.

A JSON object has the fields `prompt`, `chosen` and `rejected`. They are texts, or with
`data.chat_template` also lists of messages: the prompt is what the user said or the messages before
the reply, and a reply is a text, its message, or the whole chat that ends with it. Without a prompt
the chats of both replies state it. The template writes the prompt as it writes it before a reply in
training on chats (`data/chats/templates.py`). Preferences with one prompt are in the same split.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data import corpus
from data.chats.templates import ASSISTANT, MARKER_RULE, Template, find_template, parse_chat
from data.loss_weights import PreferenceRecord, WeightedDocument, WeightedPart
from data.readers import json_lines, read_policy
from data.readers.read_stats import ReadStats
from data.settings import TOKENIZER_TEMPLATE, DataConfig
from data.sources import documents
from data.sources.datasets import open_examples
from data.sources.source import TextSource, make_local_source, make_split_source
from data.splits import Document, DocumentStream, HasTokens, contains_text
from data.tokenizers import ByteTokenizer, open_tokenizer
from settings.json_types import JsonObject

REPLY_FIELDS = ("chosen", "rejected")
FIELDS = ("prompt", *REPLY_FIELDS)
WAY_OUT = "correct it or set data.on_error to skip"


def open_corpus(cfg: DataConfig) -> TextSource:
    """Returns verses of the embedded corpus: plain English is preferred to the literal translation.

    The prompt is the verse before, in plain English.
    """

    def read(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split in ("train", "valid", "test"):
            preferences = corpus_preferences(split)
            for texts in islice(preferences, cfg.max_documents or None):
                yield split, _plain_preference(*texts)

    identity = {"corpus": corpus.NAME, "sha256": corpus.checksums(), "limit": cfg.max_documents}
    # All objectives share one vocabulary, which is learned from the documents.
    read_documents = documents.open_corpus(cfg).read
    rule: JsonObject = {"records": "preferred verses", "markers": MARKER_RULE}
    return TextSource(identity | rule, 0, read, read_documents)


def corpus_preferences(split: str) -> Iterator[tuple[str, str, str]]:
    """Yields (prompt, chosen, rejected): a verse, then the next one in plain and literal English.

    The plain translation is the World English Bible, the literal one is Young's.
    """
    pairs = list(corpus.iter_text_pairs(split))
    for (before, _), (plain, literal) in zip(pairs[:-1], pairs[1:], strict=True):
        if plain != literal:
            yield f"{before}\n", plain, literal


def open_jsonl(cfg: DataConfig) -> TextSource:
    """Returns the preferences of files of JSON lines."""
    template = _template(cfg)

    def read_preferences(path: Path, policy: read_policy.ErrorPolicy) -> Iterator[Document]:
        for offset, _, record in json_lines.iter_json(path, policy):
            location = read_policy.format_location(path, offset)
            preference = parse_preference(record, template, location, policy)
            if preference is not None:
                yield preference

    chat = template.as_jinja(bos=False) if template else ""
    identity: JsonObject = {"records": list(FIELDS), "markers": MARKER_RULE}
    identity |= {"chat": chat} if template else {}
    return make_local_source(cfg, identity, read_preferences)


def open_datasets(cfg: DataConfig) -> TextSource:
    """Returns the preferences of a data set."""
    examples = open_examples(cfg)

    def read_split(split: str, stats: ReadStats) -> Iterator[Document]:
        policy = read_policy.ErrorPolicy(cfg.on_error, split, stats)
        for location, record in examples.read(split, policy):
            preference = parse_preference(record, None, location, policy)
            if preference is not None:
                yield preference

    identity = examples.identity | {"records": list(FIELDS), "markers": MARKER_RULE}
    return make_split_source(cfg, identity, examples.size_bytes, read_split)


def _template(cfg: DataConfig) -> Template | None:
    if not cfg.chat_template:
        return None
    is_own = cfg.chat_template == TOKENIZER_TEMPLATE
    return find_template(
        cfg.chat_template, open_tokenizer(cfg.tokenizer) if is_own else ByteTokenizer()
    )


def parse_preference(
    record: JsonObject, template: Template | None, location: str, policy: read_policy.ErrorPolicy
) -> PreferenceRecord | None:
    """Returns the preference of a JSON object, or None if the policy skips it."""
    needed = REPLY_FIELDS if template else FIELDS
    if not all(name in record for name in needed):
        fields = ", ".join(list(record)[:8])
        policy.reject_document(
            f"{location} must hold {', '.join(FIELDS)}; it holds: {fields}; {WAY_OUT}"
        )
        return None
    if template is None:
        return _parse_texts(record, location, policy)
    return _parse_chats(record, template, location, policy)


def _parse_texts(
    record: JsonObject, location: str, policy: read_policy.ErrorPolicy
) -> PreferenceRecord | None:
    texts = []
    for name in FIELDS:
        value = record[name]
        if not isinstance(value, str) or not value.strip():
            hint = "; messages need data.chat_template" if isinstance(value, list) else ""
            policy.reject_document(f"{location} has no text under {name!r}{hint}; {WAY_OUT}")
            return None
        text = policy.check_unicode(value, location)
        if text is None:
            return None
        texts.append(text)
    if _is_without_preference(texts[1], texts[2], location, policy):
        return None
    return _plain_preference(*texts)


def _parse_chats(
    record: JsonObject, template: Template, location: str, policy: read_policy.ErrorPolicy
) -> PreferenceRecord | None:
    chats = []
    for name in REPLY_FIELDS:
        messages = _chat(record.get("prompt", []), record[name])
        last = messages[-1] if messages else None
        content = last.get("content") if isinstance(last, dict) else None
        is_reply = isinstance(last, dict) and last.get("role") == ASSISTANT
        if not is_reply or not isinstance(content, str) or not content.strip():
            policy.reject_document(
                f"{location} has no reply by the assistant under {name!r}; {WAY_OUT}"
            )
            return None
        chats.append((messages, content))
    (chosen, first), (rejected, second) = chats
    if chosen[:-1] != rejected[:-1]:
        policy.reject_document(
            f"{location} has chats that differ before the reply under 'chosen' and 'rejected'; "
            f"{WAY_OUT}"
        )
        return None
    if _is_without_preference(first, second, location, policy):
        return None
    replies = []
    for messages, _ in chats:
        document = parse_chat({"messages": messages}, template, location, policy)
        if document is None:
            return None
        # What follows the reply has no weight.
        end = max(i for i, part in enumerate(document.parts) if part.weight)
        prompt = tuple(part._replace(weight=0.0) for part in document.parts[:end])
        replies.append(WeightedDocument((document.parts[end],)))
    if not "".join(part.text for part in prompt).strip():
        policy.reject_document(f"{location} has no prompt before its replies; {WAY_OUT}")
        return None
    return PreferenceRecord(WeightedDocument(prompt), *replies)


def _chat(prompt: object, reply: object) -> list[object]:
    """Returns the messages of a prompt and a reply; [] if they are none."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(reply, str):
        reply = [{"role": ASSISTANT, "content": reply}]
    if not isinstance(prompt, list) or not isinstance(reply, list):
        return []
    return reply if reply[: len(prompt)] == prompt else [*prompt, *reply]


def _is_without_preference(
    chosen: str, rejected: str, location: str, policy: read_policy.ErrorPolicy
) -> bool:
    if chosen != rejected:
        return False
    policy.reject_document(
        f"{location} has one text under 'chosen' and 'rejected', so that nothing is preferred; "
        f"{WAY_OUT}"
    )
    return True


def _plain_preference(prompt: str, chosen: str, rejected: str) -> PreferenceRecord:
    """Returns the preference of three texts, of which only the replies count."""
    weighted = ((prompt, 0.0), (chosen, 1.0), (rejected, 1.0))
    return PreferenceRecord(*(WeightedDocument((WeightedPart(*item),)) for item in weighted))
