"""Operations of torch and flash-linear-attention as rivals in benchmarks/accelerator.py."""

import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

REPEATS = 5


def rival_cases(B: int, T: int, H: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yields torch's attention and flash-linear-attention's recurrences: a name and a measurement.

    Args:
        B: rows.
        T: tokens of a row.
        H: heads of 64 channels.
    """
    yield f"torch SDPA B={B} T={T} H={H} K=64", lambda: rival_attention(B, T, H)
    for name in ("gated_delta_rule", "kda", "simple_gla"):
        label = f"fla chunk_{name} B={B} T={T} H={H} K=64"
        yield label, functools.partial(rival_recurrence, name, B, T, H)


def rival_attention(B: int, T: int, H: int) -> dict[str, Any]:
    """Returns the seconds of torch's causal attention."""
    torch = importlib.import_module("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (torch_array(torch, B, H, T, 64) for _ in range(3))
    return time_torch(torch, lambda: attend(q, k, v, is_causal=True))


def rival_recurrence(name: str, B: int, T: int, H: int) -> dict[str, Any]:
    """Returns the seconds of a chunked recurrence of flash-linear-attention."""
    torch = importlib.import_module("torch")
    call = getattr(importlib.import_module(f"fla.ops.{name}"), f"chunk_{name}")
    q, k, v = (torch_array(torch, B, T, H, 64) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1).detach().requires_grad_()
    gate = torch_array(torch, B, T, H, *((64,) if name == "kda" else ()))
    options: dict[str, Any] = {"g": torch.nn.functional.logsigmoid(gate.float())}
    if name != "simple_gla":
        options["beta"] = torch_array(torch, B, T, H).sigmoid()
    options = {key: x.detach().requires_grad_() for key, x in options.items()}
    return time_torch(torch, lambda: call(q, k, v, **options)[0])


def torch_array(torch: Any, *shape: int) -> Any:
    """Returns random bfloat16 numbers on torch's device, with a gradient."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.randn(*shape, device=device, dtype=torch.bfloat16, requires_grad=True)


def time_torch(torch: Any, call: Callable[[], Any]) -> dict[str, Any]:
    """Returns the median seconds of a call of torch, and with its backward pass."""

    def synchronize() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {"forward": [], "backward": []}
    for repeat in range(REPEATS + 2):
        for kind, seconds in times.items():
            synchronize()
            start = time.perf_counter()
            out = call()
            if kind == "backward":
                out.float().sum().backward()
            synchronize()
            if repeat > 1:
                seconds.append(time.perf_counter() - start)
    return {kind: statistics.median(seconds) for kind, seconds in times.items()}
