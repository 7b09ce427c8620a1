"""Continues texts: prompts as tokens, stop strings, batches of requests, and text as it comes.

The result of a request depends on nothing but the request and the seed: the padded length of a row
depends only on the row, and its random numbers on the number of its request.
"""

import bisect
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from arch import Model
from data.tokenizers import Tokenizer
from errors import ConfigError
from eval.generate import GREEDY, Sampling, generate, stream
from eval.task import EvalContext
from objectives import CausalLM

UNFINISHED_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # The bytes of a character that are incomplete.


class TextModel(NamedTuple):
    """A causal model with what it needs to continue texts."""

    model: Model
    mesh: Mesh
    tokenizer: Tokenizer
    stop_tokens: tuple[int, ...]
    window: int  # Tokens of a row in training; 0: unknown.
    batch_size: int


class TextRequest(NamedTuple):
    """A prompt and the parameters of its continuation."""

    number: int  # Selects the random numbers of the request.
    prompt: np.ndarray  # Token ids, bos included.
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
    specials = ctx.data.tokenizer.specials
    specials.require("bos", "eos", needed_by="the continuation of a text")
    return TextModel(
        *(ctx.trainable.model, ctx.mesh, ctx.data.tokenizer, (specials.eos,)),
        *(ctx.settings.train.seq_len, ctx.settings.eval.batch_size),
    )


def encode_prompt(tokenizer: Tokenizer, parts: Iterable[str]) -> np.ndarray:
    """Returns bos and the ids of the parts of a prompt, each of which is encoded separately."""
    ids = tokenizer.encode(list(parts))
    return np.concatenate([[tokenizer.specials.bos], *ids]).astype(np.int32)


def continue_texts(
    target: TextModel, requests: Sequence[TextRequest], seed: int
) -> list[Continuation]:
    """Returns the continuation of each request, in the order of the requests."""
    key, results = jax.random.key(seed), dict[int, Continuation]()
    for indices, rows, length in _batches(requests, target.batch_size):
        first = rows[0]
        with jax.set_mesh(target.mesh):
            continuations = generate(
                target.model,
                [row.prompt for row in rows],
                first.max_new_tokens,
                key=key,
                prompt_numbers=[row.number for row in rows],
                stop_tokens=target.stop_tokens,
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
    with jax.set_mesh(target.mesh):
        for token in stream(
            *(target.model, prompt, request.max_new_tokens),
            key=jax.random.key(seed),
            prompt_number=request.number,
            stop_tokens=target.stop_tokens,
            sampling=request.sampling,
            pad_to=_padded_length(len(prompt)),
        ):
            tokens.append(token)
            text = decode_continuation(target.tokenizer, prompt, tokens)
            end = find_stop(text, request.stops)
            if end is not None:
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


def decode_continuation(tokenizer: Tokenizer, prompt: np.ndarray, tokens: Sequence[int]) -> str:
    """Returns the text of new tokens after a prompt.

    Both are decoded together, because some tokenizers drop a space at the beginning of a text.
    """
    prefix, text = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
    return text[len(prefix) :] if text.startswith(prefix) else tokenizer.decode(tokens)


def _finish(target: TextModel, request: TextRequest, tokens: np.ndarray) -> Continuation:
    def decode(n: int) -> str:
        return decode_continuation(target.tokenizer, request.prompt, tokens[:n].tolist())

    n, text = len(tokens), decode(len(tokens))
    end = find_stop(text, request.stops)
    is_stopped = end is not None or n < request.max_new_tokens
    if end is not None:  # The first tokens that spell a stop string.
        counts = range(1, n + 1)
        n = counts[bisect.bisect_left(counts, True, key=lambda n: _has_stop(decode(n), request))]
    return Continuation(text[:end], n, "stop" if is_stopped else "length")


def _has_stop(text: str, request: TextRequest) -> bool:
    return find_stop(text, request.stops) is not None


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
        length = _padded_length(len(request.prompt))
        groups.setdefault((length, request.max_new_tokens, request.sampling), []).append(i)
    for (length, *_), group in groups.items():
        for start in range(0, len(group), batch_size):
            indices = group[start : start + batch_size]
            rows = [requests[i] for i in indices]
            yield indices, rows + rows[-1:] * (batch_size - len(rows)), length
