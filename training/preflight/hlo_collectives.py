"""Communication of a compiled step: its collectives and their bytes, read from its HLO.

The body of a loop counts as often as the loop runs, which the compiler notes or the constant in the
loop's condition shows. The bytes of a collective are those of its larger side on one device: the
output of an all-gather, the input of a reduce-scatter, the buffer of a ragged all-to-all. The
traffic of a link depends on the algorithm: a ring moves (n - 1) / n of these bytes, an all-reduce
twice that. A TPU program names one asynchronous collective in several fusions that share a
`chain_id`, and expresses a reduce-scatter as an all-reduce in a fusion called
`all-reduce-scatter`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVE_KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
DTYPE_BITS = {"pred": 8, "bf16": 16, "token": 0, "s4": 4, "u4": 4}
COMPUTATION_HEADER = re.compile(r"^\s*(?:ENTRY\s+)?%?([\w.-]+)\s*\(.*\)\s*->.*\{\s*$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.-]+) = (.*?)\s([a-z][\w-]*)\((.*)$")
SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
CALLED_COMPUTATION = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)"
)
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'known_trip_count"?:?\s*\{"?n"?:\s*"?(\d+)')
CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
CHAIN_ID = re.compile(r'chain_id="?(\d+)')


class CollectiveTraffic(NamedTuple):
    """The calls and the bytes of one kind of collective in a step."""

    num_calls: int  # calls per step
    bytes: int  # bytes per step and device


class HloInstruction(NamedTuple):
    """One instruction of an HLO program, as text."""

    name: str
    shape: str  # shape of the result, a tuple if there are several
    opcode: str
    operands_and_attributes: str  # the text behind the opening parenthesis


def parse_collectives(hlo: str) -> dict[str, CollectiveTraffic]:
    """Returns the traffic of each kind of collective that occurs in an HLO program."""
    bodies, entry = _parse_computations(hlo)
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, size, num_calls in _iter_collectives(bodies, entry, 1, set()):
        totals[kind][0] += num_calls
        totals[kind][1] += num_calls * size
    return {kind: CollectiveTraffic(*totals[kind]) for kind in COLLECTIVE_KINDS if kind in totals}


def _parse_computations(hlo: str) -> tuple[dict[str, list[HloInstruction]], str]:
    """The instructions of each computation, and the name of the entry computation."""
    bodies: dict[str, list[HloInstruction]] = {}
    entry = current = ""
    for line in hlo.splitlines():
        if header := COMPUTATION_HEADER.match(line):
            current = header[1]
            bodies[current] = []
            entry = current if line.lstrip().startswith("ENTRY") else entry
        elif current and (match := INSTRUCTION.match(line)):
            bodies[current].append(HloInstruction(*match.groups()))
    return bodies, entry


def _iter_collectives(
    bodies: dict[str, list[HloInstruction]], name: str, num_runs: int, chain_ids: set[str]
) -> Iterator[tuple[str, int, int]]:
    """(kind, bytes, calls) of each collective below a computation; start and done count as one."""
    for instruction in bodies.get(name, ()):
        attributes = instruction.operands_and_attributes
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVE_KINDS:
            chain = CHAIN_ID.search(attributes)
            if not chain or chain[1] not in chain_ids:
                scatters = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                size = _collective_bytes(instruction, bodies[name])
                yield "reduce-scatter" if scatters else kind, size, num_runs
            chain_ids.update([chain[1]] if chain else ())
            continue  # the computation that it calls only adds two numbers
        is_loop = instruction.opcode == "while"
        inner_runs = num_runs * (_trip_count(instruction, bodies) if is_loop else 1)
        called = CALLED_COMPUTATION.findall(attributes)
        for branches in BRANCHES.findall(attributes):
            called += [text.strip().lstrip("%") for text in branches.split(",")]
        for computation in called:
            yield from _iter_collectives(bodies, computation, inner_runs, chain_ids)


def _trip_count(loop: HloInstruction, bodies: dict[str, list[HloInstruction]]) -> int:
    """The iterations of a loop: the compiler's note, or the limit of a counter from 0; else 1."""
    if note := TRIP_COUNT.search(loop.operands_and_attributes):
        return int(note[1])
    condition = CONDITION.search(loop.operands_and_attributes)
    body = bodies.get(condition[1], []) if condition else []
    limits = [int(i.operands_and_attributes.partition(")")[0]) for i in body if _is_loop_limit(i)]
    comparisons = [
        i for i in body if i.opcode == "compare" and "direction=LT" in i.operands_and_attributes
    ]
    return limits[0] if len(limits) == 1 and len(comparisons) == 1 else 1


def _is_loop_limit(instruction: HloInstruction) -> bool:
    return instruction.opcode == "constant" and bool(
        re.match(r"\d+\)", instruction.operands_and_attributes)
    )


def _collective_bytes(instruction: HloInstruction, body: list[HloInstruction]) -> int:
    """The larger of input and output; the result of a start holds both."""
    outputs = [_shape_bytes(*shape) for shape in SHAPE.findall(instruction.shape)]
    if instruction.opcode.endswith("-start"):
        return max(outputs) if instruction.opcode != "all-reduce-start" else sum(outputs)
    operands = instruction.operands_and_attributes.partition(")")[0]
    inputs = [_shape_bytes(*shape) for shape in SHAPE.findall(operands)]
    if not inputs:  # some printers omit the shapes of operands
        shapes = {i.name: i.shape for i in body}
        names = re.findall(r"%?([\w.-]+)", operands)
        inputs = [_shape_bytes(*s) for n in names for s in SHAPE.findall(shapes.get(n, ""))]
    return max(sum(outputs), sum(inputs))


def _shape_bytes(dtype: str, dimensions: str) -> int:
    digits = re.search(r"\d+", dtype)
    bits = DTYPE_BITS.get(dtype) if dtype in DTYPE_BITS else int(digits[0]) if digits else 0
    return math.prod(int(d) for d in dimensions.split(",") if d) * (bits or 0) // 8
