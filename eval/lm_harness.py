"""A causal learner as a model of lm-evaluation-harness (extra `lm-eval`).

    from eval.lm_harness import language_model
    lm_eval.simple_evaluate(model=language_model(subject), tasks=["sciq"])

`subject` is `eval.subject.from_run(folder)[0]`. What a request scores depends on nothing but the
request: rows are padded to widths of their own and greedy continuations are those of a prompt
alone; requests that sample run one by one. Batches have `eval.batch` rows.
"""

import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from errors import ConfigError
from eval.generate import GREEDY, Sampling, generate
from eval.likelihood import likelihoods
from eval.task import Subject

MOST = 256  # new tokens, unless the request says
KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p")


class Wish(NamedTuple):
    """What a request for text asks."""

    prompt: str
    until: tuple[str, ...]
    steps: int
    sampling: Sampling


class Requests:
    """The three questions that lm-evaluation-harness asks, for requests with `args`."""

    def __init__(self, subject: Subject):
        super().__init__()
        if subject.settings.objective != "causal_lm":
            raise ConfigError(
                f"lm-eval asks for the likelihood of texts, the run is of objective "
                f"{subject.settings.objective}; give a run of causal_lm"
            )
        self.subject = subject

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Of (context, continuation): log p, and whether each token is the likeliest."""
        found = likelihoods(self.subject, [(one.args[0], one.args[1]) for one in requests])
        return [(-one.nats, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Of (text,), after bos."""
        found = likelihoods(self.subject, [("", one.args[0]) for one in requests])
        return [-one.nats for one in found]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Of (prompt, settings): what follows, without the first of `until` that comes."""
        wishes = [_wish(one.args[0], one.args[1]) for one in requests]
        return continuations(self.subject, wishes)


def language_model(subject: Subject) -> Any:
    """An `lm_eval.api.model.LM`."""
    try:
        base = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise ConfigError(
            "lm-evaluation-harness is not there; pip install 'isoflop[lm-eval]'"
        ) from error

    class LanguageModel(Requests, base):
        """The requests, as a subclass that lm-eval accepts."""

    return LanguageModel(subject)


def continuations(subject: Subject, wishes: list[Wish]) -> list[str]:
    """The text that each wish asks for, in their order.

    A row of training bounds prompt and text together: the text gets at most half of it, and a
    prompt loses its beginning.
    """
    tokenizer, window = subject.data.tokenizer, subject.settings.train.length
    tokenizer.specials.require("bos", "eos", what="the continuation of a text")
    encoded = tokenizer.encode([wish.prompt for wish in wishes])
    out = [""] * len(wishes)
    key = functools.partial(jax.random.fold_in, jax.random.key(subject.settings.seed))
    for own, steps, sampling in _grouped(wishes):
        steps = min(steps, max(window // 2, 1))
        room = window - steps
        prompts = [np.array([tokenizer.specials.bos, *encoded[i]])[-room:] for i in own]
        for some, rows, pad in _batches(subject, prompts, sampling):
            with jax.set_mesh(subject.mesh):
                found = generate(
                    subject.learner.model,
                    rows,
                    steps,
                    key=key(own[some[0]]),
                    stop=tokenizer.specials.eos,
                    sampling=sampling,
                    pad=min(pad, room),
                )
            for i, tokens in zip(some, found, strict=False):
                wish = wishes[own[i]]
                out[own[i]] = _before(tokenizer.decode(tokens), wish.until)
    return out


def _wish(prompt: str, asked: Mapping[str, Any]) -> Wish:
    unknown = set(asked) - {*KNOWN}
    if unknown:
        raise ConfigError(
            f"generate_until asks for {', '.join(sorted(unknown))}; known are "
            f"{', '.join(KNOWN)}: leave the rest out of generation_kwargs"
        )
    until = asked.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    steps = int(asked.get("max_gen_toks") or MOST)
    heat = float(asked.get("temperature") or 0)
    if "do_sample" in asked and not asked["do_sample"]:
        heat = 0.0
    elif asked.get("do_sample") and "temperature" not in asked:
        heat = 1.0
    if not heat:
        return Wish(prompt, until, steps, GREEDY)
    sampling = Sampling(
        heat,
        top_k=int(asked.get("top_k") or 0),
        top_p=float(asked.get("top_p") or 1),
        min_p=float(asked.get("min_p") or 0),
    )
    return Wish(prompt, until, steps, sampling)


def _grouped(wishes: list[Wish]) -> Iterator[tuple[list[int], int, Sampling]]:
    """Numbers of wishes that one program serves."""
    groups: dict[tuple[int, Sampling], list[int]] = {}
    for i, wish in enumerate(wishes):
        groups.setdefault((wish.steps, wish.sampling), []).append(i)
    for (steps, sampling), own in groups.items():
        yield own, steps, sampling


def _batches(
    subject: Subject, prompts: list[np.ndarray], sampling: Sampling
) -> Iterator[tuple[list[int], list[np.ndarray], int]]:
    """Numbers of prompts, the rows of a batch (the last prompt fills it up), and their width.

    A row draws by its place in the batch, so that those who draw get a batch each.
    """
    count = subject.settings.eval.batch if sampling == GREEDY else 1
    by_width: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_width.setdefault(1 << (len(prompt) - 1).bit_length(), []).append(i)
    for width, own in sorted(by_width.items()):
        for at in range(0, len(own), count):
            some = own[at : at + count]
            rows = [prompts[i] for i in some]
            yield some, rows + rows[-1:] * (count - len(rows)), width


def _before(text: str, until: tuple[str, ...]) -> str:
    """`text` up to the first of `until`."""
    ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
