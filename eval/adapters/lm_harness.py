"""Adapts a model to lm-evaluation-harness (extra `lm-eval`).

    from eval.adapters.lm_harness import make_lm_eval_model
    lm_eval.simple_evaluate(model=make_lm_eval_model(ctx), tasks=["sciq"])

`ctx` is `eval.load_run.load_run(folder)[0]`. The result of a request depends on nothing but the
request (`eval/text_generation.py`). Batches have `eval.batch_size` rows. Window, frame and stop ids
are those of `eval/framing.py`; special tokens that a text spells become their ids, as in lm-eval's
own backends. What does not fit the window is cut as lm-eval cuts it, and the log says so. An
encoder-decoder gives likelihoods, and continues no text.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from data.chats.templates import CHAT_TEMPLATES, Template, find_template
from data.loss_weights import WeightedPart
from data.settings import TOKENIZER_TEMPLATE
from errors import ConfigError, DataError
from eval.generate import GREEDY, Sampling
from eval.harness import narrow_to_objective
from eval.likelihood import compute_likelihoods
from eval.task import EvalContext
from eval.text_generation import TextRequest, continue_texts, encode_prompt, text_model
from objectives import CausalLM
from settings.json_types import JsonObject
from training.run.console import LOGGER

DEFAULT_MAX_NEW_TOKENS = 256  # Used if a request does not set max_gen_toks.
# Names of the limit of new tokens, the first of which applies.
LIMIT_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
GENERATION_KEYS = ("until", *LIMIT_KEYS, "do_sample", "temperature", "top_k", "top_p", "min_p")

T = TypeVar("T", int, float)


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
        ctx = narrow_to_objective(ctx, "causal_lm")
        objective, has_encoder = ctx.settings.objective, ctx.settings.model.encoder.depth > 0
        is_causal = isinstance(ctx.objective.for_eval(), CausalLM)
        if not is_causal and not (objective == "denoising" and has_encoder):
            raise ConfigError(
                f"lm-eval requires the likelihood of texts, the run is of objective {objective}; "
                "give a run of causal_lm, or an encoder-decoder"
            )
        self.ctx = ctx
        self._template: Template | None = None  # The one that lm-eval asked for by name.

    def loglikelihood(self, requests: Sequence[LmEvalRequest]) -> list[tuple[float, bool]]:
        """Returns log p of each continuation, and whether all of its tokens are most likely.

        The arguments of a request are (context, continuation).
        """
        pairs = [(request.args[0], request.args[1]) for request in requests]
        likelihoods = compute_likelihoods(self.ctx, pairs, has_markers=True)
        return [(-x.nats, x.is_greedy) for x in likelihoods]

    def loglikelihood_rolling(self, requests: Sequence[LmEvalRequest]) -> list[float]:
        """Returns log p of each text without a context; the arguments of a request are (text,)."""
        pairs = [("", request.args[0]) for request in requests]
        return [-x.nats for x in compute_likelihoods(self.ctx, pairs, has_markers=True)]

    def generate_until(self, requests: Sequence[LmEvalRequest]) -> list[str]:
        """Returns the continuation of each prompt up to the first stop string.

        The arguments of a request are (prompt, generation_kwargs); `until` has the stop strings.
        """
        parsed = [_parse_request(request.args[0], request.args[1]) for request in requests]
        return generate_continuations(self.ctx, parsed)

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval caches requests: the fingerprint of the tokenizer."""
        return self.ctx.data.tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the program of the template for lm-eval's records; None without chats.

        Args:
            chat_template: True for the template of the model, False for none, or the name of one.

        Raises:
            ConfigError: if there is no template of this name.
        """
        if chat_template is False or chat_template is None:
            return None
        tokenizer = self.ctx.data.tokenizer
        self._template = find_chat_template(self.ctx, chat_template)
        return self._template.as_jinja(tokenizer.specials.bos in tokenizer.framing.document_prefix)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the text of a chat before its next reply.

        Without `add_generation_prompt` it ends with the content of the last message, which the
        model continues. As in lm-eval, a template that fails gets the chat without its system.

        Raises:
            DataError: if the template fails.
        """
        template = self._template or find_chat_template(self.ctx)
        messages = [(message["role"], message["content"]) for message in chat_history]
        try:
            text = template.text(messages, add_generation_prompt)
        except DataError as error:
            messages = [message for message in messages if message[0] != "system"]
            if len(messages) == len(chat_history):
                raise
            LOGGER.warning("%s; the message of the system is left out", error)
            text = template.text(messages, add_generation_prompt)
        if add_generation_prompt:
            return text
        content = messages[-1][1].lstrip()
        content = content if content in text else content.rstrip()  # Some templates strip it.
        return text[: text.rindex(content) + len(content)]


def find_chat_template(ctx: EvalContext, name: bool | str = True) -> Template:
    """Returns the template of this name; by default that of the run, or of the tokenizer's files.

    Raises:
        ConfigError: if there is none.
    """
    tokenizer = ctx.data.tokenizer
    if name is True:
        name = ctx.settings.data.chat_template
        name = name or TOKENIZER_TEMPLATE * bool(tokenizer.framing.chat_template)
    names = (*CHAT_TEMPLATES, TOKENIZER_TEMPLATE)
    if not name:
        raise ConfigError(
            "the run was trained on no chats (data.chat_template), and the files of its tokenizer "
            f"have no template; give apply_chat_template one of {', '.join(CHAT_TEMPLATES)}"
        )
    if name not in names:
        raise ConfigError(f"apply_chat_template is {name!r}; use True or one of {', '.join(names)}")
    return find_template(str(name), tokenizer)


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

    As in lm-eval, prompt and continuation share a window, and a prompt that is too long loses its
    beginning. lm-eval refuses a continuation of a window or more; here it gets at most half of a
    window. Both are said.
    """
    target = text_model(ctx)
    window = target.reads.window
    text_requests, n_cut = list[TextRequest](), 0
    for number, request in enumerate(requests):
        marked = WeightedPart(request.prompt, plain=())
        prompt = encode_prompt(target.tokenizer, target.reads, (marked,))
        n_new = request.max_new_tokens
        n_new = n_new if n_new < window else max(window // 2, 1)
        room = max(window - n_new, 1)
        n_cut += len(prompt) > room
        text_requests.append(
            TextRequest(number, prompt[-room:], n_new, request.until, request.sampling)
        )
    longest = max((request.max_new_tokens for request in requests), default=0)
    if longest >= window:
        LOGGER.warning(
            "max_gen_toks %d does not fit the window of %d tokens; continuations have at most %d",
            *(longest, window, max(window // 2, 1)),
        )
    if n_cut:
        LOGGER.warning(
            "%d of %d prompts do not fit the window of %d tokens and lose their beginning",
            *(n_cut, len(requests), window),
        )
    results = continue_texts(target, text_requests, ctx.settings.seed)
    return [result.text for result in results]


def _parse_request(prompt: str, gen_kwargs: JsonObject) -> GenerationRequest:
    unknown = set(gen_kwargs) - {*GENERATION_KEYS}
    if unknown:
        raise ConfigError(
            f"generate_until has {', '.join(sorted(unknown))}; known keys are "
            f"{', '.join(GENERATION_KEYS)}: remove the others from generation_kwargs"
        )
    until = gen_kwargs.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    limit = next((key for key in LIMIT_KEYS if gen_kwargs.get(key) is not None), LIMIT_KEYS[0])
    max_new_tokens = _number(gen_kwargs, limit, int, DEFAULT_MAX_NEW_TOKENS)
    if max_new_tokens < 0:
        raise ConfigError(f"generate_until has {limit} {max_new_tokens}, must be >= 0")
    temperature = _number(gen_kwargs, "temperature", float, 0.0)
    if "do_sample" in gen_kwargs and not gen_kwargs["do_sample"]:
        temperature = 0.0
    elif gen_kwargs.get("do_sample") and "temperature" not in gen_kwargs:
        temperature = 1.0
    if not temperature:
        return GenerationRequest(prompt, until, max_new_tokens, GREEDY)
    sampling = Sampling(
        temperature,
        top_k=_number(gen_kwargs, "top_k", int, 0),
        top_p=_number(gen_kwargs, "top_p", float, 1.0),
        min_p=_number(gen_kwargs, "min_p", float, 0.0),
    )
    return GenerationRequest(prompt, until, max_new_tokens, sampling)


def _number(gen_kwargs: JsonObject, name: str, kind: type[T], default: T) -> T:
    """Returns a number of generation_kwargs; None and a missing one are the default.

    Raises:
        ConfigError: if the value is not such a number.
    """
    value = gen_kwargs.get(name)
    try:
        return default if value is None else kind(value)  # type: ignore[call-arg]
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"generate_until has {name} {value!r}, must be of type {kind.__name__}"
        ) from None
