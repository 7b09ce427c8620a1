"""Adapts a causal model to lm-evaluation-harness (extra `lm-eval`).

    from eval.adapters.lm_harness import make_lm_eval_model
    lm_eval.simple_evaluate(model=make_lm_eval_model(ctx), tasks=["sciq"])

`ctx` is `eval.load_run.load_run(folder)[0]`. The result of a request depends on nothing but the
request: the padded length of a row depends only on the row, a greedy continuation equals that of
the prompt alone, and requests that sample run one by one. Batches have `eval.batch_size` rows.
"""

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from errors import ConfigError
from eval.generate import GREEDY, Sampling, generate
from eval.likelihood import compute_likelihoods
from eval.task import EvalContext
from settings.json_types import JsonObject

DEFAULT_MAX_NEW_TOKENS = 256  # Used if a request does not set max_gen_toks.
GENERATION_KEYS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p")


class GenerationRequest(NamedTuple):
    """Holds the prompt and the parameters of one request for text."""

    prompt: str
    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling


class LmEvalRequest(Protocol):
    """The part of lm-eval's requests that the model reads."""

    args: tuple


class LmEvalModel:
    """Implements the three request types of lm-evaluation-harness; requests have `args`."""

    def __init__(self, ctx: EvalContext):
        super().__init__()
        if ctx.settings.objective != "causal_lm":
            raise ConfigError(
                f"lm-eval requires the likelihood of texts, the run is of objective "
                f"{ctx.settings.objective}; give a run of causal_lm"
            )
        self.ctx = ctx

    def loglikelihood(self, requests: Sequence[LmEvalRequest]) -> list[tuple[float, bool]]:
        """Returns log p of each continuation, and whether all of its tokens are most likely.

        The arguments of a request are (context, continuation).
        """
        pairs = [(request.args[0], request.args[1]) for request in requests]
        return [(-x.nats, x.is_greedy) for x in compute_likelihoods(self.ctx, pairs)]

    def loglikelihood_rolling(self, requests: Sequence[LmEvalRequest]) -> list[float]:
        """Returns log p of each text after bos; the arguments of a request are (text,)."""
        pairs = [("", request.args[0]) for request in requests]
        return [-x.nats for x in compute_likelihoods(self.ctx, pairs)]

    def generate_until(self, requests: Sequence[LmEvalRequest]) -> list[str]:
        """Returns the continuation of each prompt up to the first stop string.

        The arguments of a request are (prompt, generation_kwargs); `until` has the stop strings.
        """
        parsed = [_parse_request(request.args[0], request.args[1]) for request in requests]
        return generate_continuations(self.ctx, parsed)


def make_lm_eval_model(ctx: EvalContext) -> Any:
    """Returns the model as an `lm_eval.api.model.LM`.

    Raises:
        ConfigError: if lm-evaluation-harness is not installed.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise ConfigError(
            "lm-evaluation-harness is not installed; pip install 'isoflop[lm-eval]'"
        ) from error

    class LanguageModel(LmEvalModel, base):
        """Adds the base class that lm-eval requires."""

    return LanguageModel(ctx)


def generate_continuations(ctx: EvalContext, requests: list[GenerationRequest]) -> list[str]:
    """Returns the continuation of each request, in the order of the requests.

    Prompt and continuation share a row of the training length: the continuation has at most half of
    it, and a prompt that is too long loses its beginning.
    """
    tokenizer, window = ctx.data.tokenizer, ctx.settings.train.seq_len
    tokenizer.specials.require("bos", "eos", needed_by="the continuation of a text")
    encoded = tokenizer.encode([request.prompt for request in requests])
    texts = [""] * len(requests)
    make_key = functools.partial(jax.random.fold_in, jax.random.key(ctx.settings.seed))
    for group, max_new_tokens, sampling in _group_requests(requests):
        max_new_tokens = min(max_new_tokens, max(window // 2, 1))
        max_prompt = window - max_new_tokens
        prompts = [np.array([tokenizer.specials.bos, *encoded[i]])[-max_prompt:] for i in group]
        for indices, rows, length in _prompt_batches(ctx, prompts, sampling):
            with jax.set_mesh(ctx.mesh):
                continuations = generate(
                    ctx.trainable.model,
                    rows,
                    max_new_tokens,
                    key=make_key(group[indices[0]]),
                    stop_tokens=tokenizer.specials.eos,
                    sampling=sampling,
                    pad_to=min(length, max_prompt),
                )
            for i, tokens in zip(indices, continuations, strict=False):
                until = requests[group[i]].until
                texts[group[i]] = _truncate_at_stop(tokenizer.decode(tokens), until)
    return texts


def _parse_request(prompt: str, gen_kwargs: JsonObject) -> GenerationRequest:
    unknown = set(gen_kwargs) - {*GENERATION_KEYS}
    if unknown:
        raise ConfigError(
            f"generate_until has {', '.join(sorted(unknown))}; known keys are "
            f"{', '.join(GENERATION_KEYS)}: remove the others from generation_kwargs"
        )
    until = gen_kwargs.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    max_new_tokens = int(gen_kwargs.get("max_gen_toks") or DEFAULT_MAX_NEW_TOKENS)
    temperature = float(gen_kwargs.get("temperature") or 0)
    if "do_sample" in gen_kwargs and not gen_kwargs["do_sample"]:
        temperature = 0.0
    elif gen_kwargs.get("do_sample") and "temperature" not in gen_kwargs:
        temperature = 1.0
    if not temperature:
        return GenerationRequest(prompt, until, max_new_tokens, GREEDY)
    sampling = Sampling(
        temperature,
        top_k=int(gen_kwargs.get("top_k") or 0),
        top_p=float(gen_kwargs.get("top_p") or 1),
        min_p=float(gen_kwargs.get("min_p") or 0),
    )
    return GenerationRequest(prompt, until, max_new_tokens, sampling)


def _group_requests(requests: list[GenerationRequest]) -> Iterator[tuple[list[int], int, Sampling]]:
    """Yields the indices of requests that share a compiled program, and their parameters."""
    groups: dict[tuple[int, Sampling], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((request.max_new_tokens, request.sampling), []).append(i)
    for (max_new_tokens, sampling), indices in groups.items():
        yield indices, max_new_tokens, sampling


def _prompt_batches(
    ctx: EvalContext, prompts: list[np.ndarray], sampling: Sampling
) -> Iterator[tuple[list[int], list[np.ndarray], int]]:
    """Yields the indices of prompts, the rows of their batch, and the padded length of the rows.

    The last prompt of a batch is repeated to fill it. The random numbers of a row depend on its
    index in the batch, so prompts that are sampled get a batch each.
    """
    batch_size = ctx.settings.eval.batch_size if sampling == GREEDY else 1
    buckets: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        buckets.setdefault(1 << (len(prompt) - 1).bit_length(), []).append(i)
    for length, bucket in sorted(buckets.items()):
        for start in range(0, len(bucket), batch_size):
            indices = bucket[start : start + batch_size]
            rows = [prompts[i] for i in indices]
            yield indices, rows + rows[-1:] * (batch_size - len(rows)), length


def _truncate_at_stop(text: str, stops: tuple[str, ...]) -> str:
    """Returns `text` up to the first of the stop strings."""
    ends = [end for stop in stops if stop and (end := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
