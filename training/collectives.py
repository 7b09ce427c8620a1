"""What a compiled step sends between devices: its collectives and their bytes, from its HLO.

A loop's body counts as often as it runs, by the compiler's note or the constant in its condition.
Bytes are those of a device's larger side: what an all-gather gives, what a reduce-scatter takes,
the room of a ragged all-to-all. What crosses a link depends on the algorithm; a ring moves
(n - 1) / n of it, an all-reduce twice that. A TPU's program names one asynchronous collective in
several fusions, by one `chain_id`, and has a reduce-scatter as an all-reduce in a fusion of that
name.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
BITS = {"pred": 8, "bf16": 16, "token": 0, "s4": 4, "u4": 4}
HEADER = re.compile(r"^\s*(?:ENTRY\s+)?%?([\w.-]+)\s*\(.*\)\s*->.*\{\s*$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.-]+) = (.*?)\s([a-z][\w-]*)\((.*)$")
SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count"?:?\s*\{"?n"?:\s*"?(\d+)')
CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
CHAIN = re.compile(r'chain_id="?(\d+)')


class Traffic(NamedTuple):
    times: int  # of a step
    bytes: int  # of a step, per device


class Instruction(NamedTuple):
    name: str
    shape: str  # of its result
    opcode: str
    rest: str  # operands and attributes


def collectives(hlo: str) -> dict[str, Traffic]:
    """By kind, those that occur."""
    bodies, entry = _computations(hlo)
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, size, times in _walk(bodies, entry, 1, set()):
        found[kind][0] += times
        found[kind][1] += times * size
    return {kind: Traffic(*found[kind]) for kind in KINDS if kind in found}


def _computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation, and the name of the first to run."""
    bodies: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in hlo.splitlines():
        if header := HEADER.match(line):
            current = header[1]
            bodies[current] = []
            entry = current if line.lstrip().startswith("ENTRY") else entry
        elif current and (match := INSTRUCTION.match(line)):
            bodies[current].append(Instruction(*match.groups()))
    return bodies, entry


def _walk(
    bodies: dict[str, list[Instruction]], name: str, times: int, chains: set[str]
) -> Iterator[tuple[str, int, int]]:
    """(kind, bytes, times) of every collective below a computation; a pair start .. done is one."""
    for one in bodies.get(name, ()):
        kind = one.opcode.removesuffix("-start")
        if kind in KINDS:
            chain = CHAIN.search(one.rest)
            if not chain or chain[1] not in chains:
                scatters = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                yield "reduce-scatter" if scatters else kind, _bytes(one, bodies[name]), times
            chains.update([chain[1]] if chain else ())
            continue  # what it calls is only its addition
        inner = times
        if one.opcode == "while":
            inner *= _trips(one, bodies)
        called = CALLED.findall(one.rest)
        for group in BRANCHES.findall(one.rest):
            called += [text.strip().lstrip("%") for text in group.split(",")]
        for other in called:
            yield from _walk(bodies, other, inner, chains)


def _trips(one: Instruction, bodies: dict[str, list[Instruction]]) -> int:
    """How often a loop runs: noted, or what its counter, from 0, is compared with; else 1."""
    if noted := TRIPS.search(one.rest):
        return int(noted[1])
    condition = CONDITION.search(one.rest)
    body = bodies.get(condition[1], []) if condition else []
    limits = [int(i.rest.partition(")")[0]) for i in body if _is_limit(i)]
    compares = [i for i in body if i.opcode == "compare" and "direction=LT" in i.rest]
    return limits[0] if len(limits) == 1 and len(compares) == 1 else 1


def _is_limit(one: Instruction) -> bool:
    return one.opcode == "constant" and bool(re.match(r"\d+\)", one.rest))


def _bytes(one: Instruction, body: list[Instruction]) -> int:
    """The larger of what goes in and what comes out; a start's result holds both."""
    out = [_size(*shape) for shape in SHAPE.findall(one.shape)]
    if one.opcode.endswith("-start"):
        return max(out) if one.opcode != "all-reduce-start" else sum(out)
    operands = one.rest.partition(")")[0]
    sizes = [_size(*shape) for shape in SHAPE.findall(operands)]
    if not sizes:  # some printers leave operand shapes out
        shapes = {other.name: other.shape for other in body}
        names = re.findall(r"%?([\w.-]+)", operands)
        sizes = [_size(*s) for n in names for s in SHAPE.findall(shapes.get(n, ""))]
    return max(sum(out), sum(sizes))


def _size(kind: str, dimensions: str) -> int:
    digits = re.search(r"\d+", kind)
    bits = BITS.get(kind) if kind in BITS else int(digits[0]) if digits else 0
    return math.prod(int(d) for d in dimensions.split(",") if d) * (bits or 0) // 8
