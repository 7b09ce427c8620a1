"""Checks annotations of arrays: `python tests/annotations.py` traces models and training steps.

jaxtyping's import hook passes every function of the packages below to `check_arrays`, so that
beartype compares the arrays of each call with `Float[Array, "B T D"]` and the like: the same letter
must be the same number. Hints without arrays are mypy's. Nothing is computed or compiled.
"""

import functools
import operator
import os
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import beartype
from jaxtyping import AbstractArray, install_import_hook

F = TypeVar("F", bound=Callable)
UNIONS = (typing.Union, type(int | str))
PACKAGES = ["arch", "ops", "objectives", "data", "training", "eval"]
AXIS = re.compile(r"[*?]*([A-Za-z_]\w*|\d+)|\.\.\.")  # A letter, a number, or any axes.
PAIRS = [
    *("moe-causal_lm", "hybrid-masked_lm", "encdec-denoising", "mamba1-contrastive"),
    *("dense-preference", "dense-mixture"),
]


def check_arrays(function: F) -> F:
    """Returns a function that checks the arrays of its calls, as jaxtyping's hook wants it."""
    if isinstance(function, type) or function.__name__ == "__init__":
        return function  # Trees of arrays are made anew with any leaves, as stacked ones.
    hints = typing.get_type_hints(function)
    function.__annotations__ = {name: _loosen(h) for name, h in hints.items() if _has_array(h)}
    return beartype.beartype(function)


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _has_array(hint: Any) -> bool:
    return _is_array(hint) or any(map(_has_array, typing.get_args(hint)))


def _loosen(hint: Any) -> Any:
    """Returns a hint without the sizes that only readers can compute, as in "H*K" and "4C"."""
    if _is_array(hint):
        axes = [axis if AXIS.fullmatch(axis) else "_" for axis in hint.dim_str.split()]
        return hint.dtype[hint.array_type, " ".join(axes)]
    if not _has_array(hint):
        return hint
    args = tuple(map(_loosen, typing.get_args(hint)))
    origin = typing.get_origin(hint)
    return functools.reduce(operator.or_, args) if origin in UNIONS else origin[args]


def trace_models() -> None:
    """Traces each mixer: a gradient, a prefill and a step, and both directions."""
    import jax
    import tiny

    from arch import MIXERS, Model, SequenceInfo

    for name in MIXERS:
        cases = tiny.CASES.get(name, {"default": {}})
        print(name, *cases, flush=True)
        for case in cases.values():
            cfg = tiny.config(name, **case)
            ids, seq = tiny.tokens(2, 8), SequenceInfo.unpacked(2, 8)
            model = jax.eval_shape(lambda cfg=cfg: Model(cfg, key=jax.random.key(0)))

            def loss(model: Any, ids: Any = ids, seq: Any = seq) -> Any:
                return model.logits(model(ids, seq)[0]).astype("float32").sum()

            def prefill(model: Any, ids: Any = ids, seq: Any = seq) -> Any:
                return model(ids, seq, state=model.init_state(2, 9))[0]

            jax.eval_shape(jax.grad(loss, allow_int=True), model)
            jax.eval_shape(prefill, model)


def trace_steps() -> None:
    """Traces the training step of pairs of an architecture and an objective."""
    import jax

    from configs import grid
    from settings.changes import with_changes
    from settings.tree import freeze
    from training import mesh as meshes
    from training.program import make_program
    from training.settings import Settings, resolve

    for pair in PAIRS:
        print(pair, flush=True)
        settings = freeze(Settings, grid.get_config(pair))
        settings = with_changes(settings, {"train.batch_size": 4, "train.seq_len": 64})
        settings = resolve(settings, 365, (9, 9, 9) if "preference" in pair else ())
        program = make_program(settings, meshes.make_mesh(settings.mesh, jax.devices()[:1]))
        with jax.set_mesh(program.mesh):
            args = program.abstract_state, program.abstract_batch, program.hyperparameters
            program.functions.step.trace(*args)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["JAX_PLATFORMS"] = "cpu"
    install_import_hook(PACKAGES, "annotations.check_arrays")
    trace_models()
    trace_steps()
