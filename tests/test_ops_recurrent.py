"""Operations along time: against goldens, float64 loops, and documents on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden

from ops import causal_conv, gated_delta, selective_scan, ssd

MODULES = {
    "causal_conv": causal_conv,
    "selective_scan": selective_scan,
    "ssd": ssd,
    "gated_delta": gated_delta,
}
TOLERANCE = {"float64": (1e-10, 1e-10), "float32": (2e-5, 1e-4)}  # of values, of gradients


def near(found, expected, tolerance: float) -> None:
    """Within `tolerance` of the expected array's RMS."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    scale = max(np.sqrt(np.mean(expected**2)), 1e-30) if expected.size else 1
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)


def begins(case: dict) -> np.ndarray | None:
    """The goldens' rule: a document begins where the id changes, padding too."""
    if "segment_ids" not in case:
        return None
    ids = case["segment_ids"]
    return np.concatenate([np.zeros_like(ids[:, :1]), ids[:, 1:] != ids[:, :-1]], axis=1) > 0


def scan_golden(case: dict, reset, options: dict, name: str | None):
    dt = jax.nn.softplus(case["delta"] + case["delta_bias"])
    u = case["u"]
    y, h = selective_scan.selective_scan(
        *(u, dt, case["A"], case["B"], case["C"]),
        reset=reset,
        state=case.get("h0"),
        implementation=name,
    )
    y = y + case["D"] * u if "D" in case else y
    return (y * jax.nn.silu(case["z"]) if "z" in case else y), h


def ssd_golden(case: dict, reset, options: dict, name: str | None):
    dt = jax.nn.softplus(case["dt"] + case["dt_bias"])
    dt = jnp.clip(dt, *(float(end) for end in options["dt_limit"]))
    x = case["x"]
    y, h = ssd.ssd(
        *(x, dt, case["A"], case["B"], case["C"]),
        reset=reset,
        state=case.get("h0"),
        chunk=16,
        implementation=name,
    )
    return (y + case["D"][:, None] * x if "D" in case else y), h


GOLDENS = {"selective_scan": scan_golden, "ssd": ssd_golden}
CASES = [(file, *case) for file in GOLDENS for case in golden(file)]


@pytest.mark.parametrize(
    ("name", "dtype"), [("reference", "float64"), ("xla", "float64"), ("xla", "float32")]
)
@pytest.mark.parametrize(
    ("file", "case", "options", "tensors"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
def test_goldens(file, case, options, tensors, name, dtype):
    reset = begins(tensors)
    moved = [key.removeprefix("grad_") for key in tensors if key.startswith("grad_")]
    with jax.enable_x64(dtype == "float64"):
        inputs = {key: jnp.asarray(tensors[key], dtype) for key in moved}
        cots = tuple(jnp.asarray(tensors[f"cot_{key}"], dtype) for key in ("y", "h_last"))

        @jax.jit
        def run(inputs, cots):
            out, pull = jax.vjp(lambda inputs: GOLDENS[file](inputs, reset, options, name), inputs)
            return out, pull(cots)[0]

        (y, h), grads = run(inputs, cots)
    assert y.dtype == h.dtype == dtype
    near(y, tensors["y"], TOLERANCE[dtype][0])
    near(h, tensors["h_last"], TOLERANCE[dtype][0])
    for key, grad in grads.items():
        near(grad, tensors[f"grad_{key}"], TOLERANCE[dtype][1])


@pytest.mark.parametrize("name", causal_conv.IMPLEMENTATIONS)
def test_causal_conv_goldens(name):
    for case, options, tensors in golden("causal_conv1d"):
        with jax.enable_x64(True):
            y, state = jax.jit(causal_conv.causal_conv, static_argnames="implementation")(
                *(tensors["x"], tensors["w"].T),
                tensors.get("b"),
                reset=begins(tensors),
                state=tensors.get("state"),
                implementation=name,
            )
            y = jax.nn.silu(y) if options["activation"] else y
        assert y.dtype == jnp.float64
        near(y, tensors["y"], 1e-10)
        if case != "packed" and "state_last" in tensors:  # the goldens' state crosses documents
            near(state, tensors["state_last"], 1e-10)
