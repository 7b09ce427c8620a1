"""Taps: what every product with a parameter reads and returns, found in the program of a function.

Parts need no code for it: the products are those whose operand comes from a parameter through
slices, casts and changes of shape. A product inside a loop, as of a recurrence over tokens, has no
tap, and a stack must be unrolled (`model.scan=False`).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, PyTree

# Operations whose result is the same array, or a part of it.
SAME_ARRAY = frozenset(
    ("convert_element_type", "slice", "dynamic_slice", "squeeze", "reshape", "transpose")
    + ("broadcast_in_dim", "copy", "sharding_constraint", "reduce_precision")
)
Origin = str | int
PRODUCTS = frozenset(("dot_general", "ragged_dot", "ragged_dot_general"))
# Operations that contain a program: the name under which they have it.
INNER_PROGRAMS = {"jit": "jaxpr", "pjit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"} | {
    "closed_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
}


def run_with_taps(
    function: Callable[[dict[str, Array]], PyTree], params: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns the root mean square of every tap of `function(params)`, a scalar each.

    The product with the parameter NAME gives the tap NAME, and what it reads gives "NAME input",
    once for all parameters that read the same array. A parameter that is stacked over layers, or
    used several times, gets the number of the use at its end.
    """
    leaves, recorder = list(params.values()), _Recorder()

    def call(values: list[Array]) -> PyTree:
        return function(dict(zip(params, values, strict=True)))

    closed = jax.make_jaxpr(call)(leaves)
    recorder.run(closed.jaxpr, closed.consts, leaves, list(params))
    return recorder.taps


class _Recorder:
    """An interpreter of programs that records the products with parameters.

    Every array has an origin, which a part or another shape of it shares: the name of a parameter,
    or a number.
    """

    def __init__(self) -> None:
        self.taps: dict[str, Array] = {}
        self.uses: Counter[str] = Counter()  # Products so far, by parameter.
        self.read_origins: set[Origin] = set()  # Origins of arrays that have a tap.
        self.numbers = itertools.count()

    def run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Array],
        args: Sequence[Array],
        origins: Sequence[Origin],
    ) -> tuple[list[Array], list[Origin]]:
        """Runs a program; returns its results and their origins."""
        values: dict[core.Var, Array] = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, args, strict=True))
        origin_of: dict[core.Var, Origin] = {var: next(self.numbers) for var in jaxpr.constvars}
        origin_of |= dict(zip(jaxpr.invars, origins, strict=True))

        def read(atom: core.Var | core.Literal) -> tuple[Array, Origin]:
            if isinstance(atom, core.Literal):
                return atom.val, next(self.numbers)
            return values[atom], origin_of[atom]

        for eqn in jaxpr.eqns:
            pairs = [read(atom) for atom in eqn.invars]
            outputs = self.run_operation(eqn, [x for x, _ in pairs], [o for _, o in pairs])
            for var, value, origin in zip(eqn.outvars, *outputs, strict=True):
                values[var], origin_of[var] = value, origin
        results = [read(atom) for atom in jaxpr.outvars]
        return [value for value, _ in results], [origin for _, origin in results]

    def run_operation(
        self, eqn: core.JaxprEqn, inputs: Sequence[Array], origins: Sequence[Origin]
    ) -> tuple[Sequence[Array], Sequence[Origin]]:
        """Runs one operation, or the program in it, and records it if it is a product."""
        name = eqn.primitive.name
        if name in INNER_PROGRAMS:
            inner = eqn.params[INNER_PROGRAMS[name]]
            if isinstance(inner, core.ClosedJaxpr):
                return self.run(inner.jaxpr, inner.consts, inputs, origins)
            return self.run(inner, (), inputs, origins)
        result = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
        outputs = result if eqn.primitive.multiple_results else [result]
        if name in PRODUCTS:
            self.record(inputs, origins, outputs[0])
        if name in SAME_ARRAY:
            return outputs, [origins[0]]
        return outputs, [next(self.numbers) for _ in outputs]

    def record(self, inputs: Sequence[Array], origins: Sequence[Origin], product: Array) -> None:
        """Records a product with a parameter and, if it is new, what it reads."""
        for parameter, x, origin in zip(origins[:2], inputs[1::-1], origins[1::-1], strict=True):
            if not isinstance(parameter, str):
                continue
            use = self.uses[parameter]
            self.uses[parameter] += 1
            name = f"{parameter}#{use}" if use else parameter
            if origin not in self.read_origins:
                self.read_origins.add(origin)
                self.taps[f"{name} input"] = _rms(x)
            self.taps[name] = _rms(product)


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
