"""Continues texts: prompts as tokens, stop strings, batches of requests, and text as it comes.

The result of a request depends on nothing but the request and the seed: the padded length of a row
depends only on the row, and its random numbers on the number of its request.
"""

import bisect
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from arch import Model
from data.chats.marked_text import encode_parts
from data.framing import Reading
from data.loss_weights import WeightedPart, in_order
from data.tokenizers import Tokenizer
from errors import ConfigError
from eval.framing import reading
from eval.generate import GREEDY, Sampling, generate, stream
from eval.task import EvalContext
from objectives import CausalLM

CONTEXT_TOKENS = 16  # The least number of tokens that are decoded before new ones.
CONTEXT_CHARACTERS = 16  # The least number of characters of their text.
UNFINISHED_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # The bytes of a character that are incomplete.


class TextModel(NamedTuple):
    """A causal model with what it needs to continue texts."""

    model: Model
    mesh: Mesh
    tokenizer: Tokenizer
    reads: Reading
    batch_size: int


class TextRequest(NamedTuple):
    """A prompt and the parameters of its continuation."""

    number: int  # Selects the random numbers of the request.
    prompt: np.ndarray  # Token ids, with those before the text.
    max_new_tokens: int
    stops: tuple[str, ...] = ()  # Texts before which the continuation ends.
    sampling: Sampling = GREEDY


class Continuation(NamedTuple):
    """The continuation of a prompt."""

    text: str
    n_tokens: int  # Number of new tokens, those of a stop string included.
    finish_reason: str  # "stop": a stop token or a stop string; "length": the limit of tokens.


def text_model(ctx: EvalContext) -> TextModel:
    """Returns the model of a run, which continues texts.

    Raises:
        ConfigError: if the run is not one of causal language modeling.
    """
    if not isinstance(ctx.objective.for_eval(), CausalLM):
        raise ConfigError(
            f"the continuation of a text needs a run of objective causal_lm, the run is of "
            f"{ctx.settings.objective}; give another run"
        )
    return TextModel(
        *(ctx.trainable.model, ctx.mesh, ctx.data.tokenizer, reading(ctx)),
        ctx.settings.eval.batch_size,
    )


def encode_prompt(
    tokenizer: Tokenizer, reads: Reading, parts: Sequence[WeightedPart]
) -> np.ndarray:
    """Returns the ids of a prompt's parts, each encoded separately, behind the model's prefix."""
    ids = np.concatenate(encode_parts(tokenizer, [in_order(parts)])[0])
    return reads.frame(ids) if len(ids) else np.array(reads.empty_context, np.int32)


def continue_texts(
    target: TextModel, requests: Sequence[TextRequest], seed: int
) -> list[Continuation]:
    """Returns the continuation of each request, in the order of the requests."""
    key = jax.random.key(seed)
    results = {
        i: Continuation("", 0, "length")
        for i, request in enumerate(requests)
        if not request.max_new_tokens
    }
    for indices, rows, length in _batches(requests, target.batch_size):
        first = rows[0]
        with jax.set_mesh(target.mesh):
            continuations = generate(
                target.model,
                [row.prompt for row in rows],
                first.max_new_tokens,
                key=key,
                prompt_numbers=[row.number for row in rows],
                stop_tokens=target.reads.stop_ids,
                sampling=first.sampling,
                pad_to=length,
            )
        for i, tokens in zip(indices, continuations, strict=False):
            results[i] = _finish(target, requests[i], tokens)
    return [results[i] for i in range(len(requests))]


def stream_text(
    target: TextModel, request: TextRequest, seed: int
) -> Generator[str, None, Continuation]:
    """Yields the pieces of a continuation as they come, and returns the whole.

    A piece ends before what may become a stop string, or the bytes of a character that is not
    complete.
    """
    tokens, shown, prompt = list[int](), 0, request.prompt
    context = decoding_context(target.tokenizer, prompt)
    with jax.set_mesh(target.mesh):
        for token in stream(
            *(target.model, prompt, request.max_new_tokens),
            key=jax.random.key(seed),
            prompt_number=request.number,
            stop_tokens=target.reads.stop_ids,
            sampling=request.sampling,
            pad_to=_padded_length(len(prompt)),
        ):
            tokens.append(token)
            text = decode_continuation(target.tokenizer, context, tokens)
            if _has_stop(target.tokenizer, context, tokens, request.stops):
                end = find_stop(text, request.stops)
                yield text[shown:end]
                return Continuation(text[:end], len(tokens), "stop")
            end = max(shown, _settled_length(text, request.stops))
            if end > shown:
                yield text[shown:end]
            shown = end
    result = _finish(target, request, np.array(tokens, np.int32))
    yield result.text[shown:]
    return result


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Returns the index of the first stop string in a text, None if there is none."""
    return min((i for stop in stops if stop and (i := text.find(stop)) >= 0), default=None)


def decoding_context(tokenizer: Tokenizer, prompt: np.ndarray) -> np.ndarray:
    """Returns the last tokens of a prompt, after which new tokens decode as after all of it.

    Their text is the end of the prompt's: they begin in no character, and have characters.
    """
    prompt_text, n = tokenizer.decode(prompt), CONTEXT_TOKENS
    while n < len(prompt):
        text = tokenizer.decode(prompt[-n:])
        if len(text) >= CONTEXT_CHARACTERS and prompt_text.endswith(text):
            return prompt[-n:]
        n *= 2
    return prompt


def decode_continuation(
    tokenizer: Tokenizer, context: np.ndarray, tokens: Sequence[int], *, has_markers: bool = False
) -> str:
    """Returns the text of new tokens after others, special tokens included with `has_markers`.

    Both are decoded together, because some tokenizers drop a space at the beginning of a text.
    """
    decode = tokenizer.decode_marked if has_markers else tokenizer.decode
    prefix, text = decode(context), decode([*context, *tokens])
    return text[len(prefix) :] if text.startswith(prefix) else decode(tokens)


def _finish(target: TextModel, request: TextRequest, tokens: np.ndarray) -> Continuation:
    n, ids = len(tokens), tokens.tolist()
    context = decoding_context(target.tokenizer, request.prompt)

    def has_stop(n: int) -> bool:
        return _has_stop(target.tokenizer, context, ids[:n], request.stops)

    is_stopped = has_stop(n)
    if is_stopped:  # The first tokens that spell a stop string.
        counts = range(1, n + 1)
        n = counts[bisect.bisect_left(counts, True, key=has_stop)]
    text = decode_continuation(target.tokenizer, context, ids[:n])
    reason = "stop" if is_stopped or n < request.max_new_tokens else "length"
    return Continuation(text[: find_stop(text, request.stops)], n, reason)


def _has_stop(
    tokenizer: Tokenizer, context: np.ndarray, tokens: Sequence[int], stops: Sequence[str]
) -> bool:
    """Returns whether new tokens spell a stop string, in which special tokens may stand."""
    has_markers = any(special in stop for stop in stops for special in tokenizer.special_texts)
    text = decode_continuation(tokenizer, context, tokens, has_markers=has_markers)
    return find_stop(text, stops) is not None


def _settled_length(text: str, stops: Sequence[str]) -> int:
    """Returns the length of the text that later tokens cannot change."""
    text = text.rstrip(UNFINISHED_CHARACTER)
    longest = max((len(stop) for stop in stops), default=0)
    for n in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return len(text) - n
    return len(text)


def _padded_length(length: int) -> int:
    return 1 << (length - 1).bit_length()


def _batches(
    requests: Sequence[TextRequest], batch_size: int
) -> Iterator[tuple[list[int], list[TextRequest], int]]:
    """Yields the indices of requests that share a program, the rows of their batch, and its length.

    The last request of a batch is repeated to fill it.
    """
    groups: dict[tuple[int, int, Sampling], list[int]] = {}
    for i, request in enumerate(requests):
        if not request.max_new_tokens:
            continue
        length = _padded_length(len(request.prompt))
        groups.setdefault((length, request.max_new_tokens, request.sampling), []).append(i)
    for (length, *_), group in groups.items():
        for start in range(0, len(group), batch_size):
            indices = group[start : start + batch_size]
            rows = [requests[i] for i in indices]
            yield indices, rows + rows[-1:] * (batch_size - len(rows)), length
