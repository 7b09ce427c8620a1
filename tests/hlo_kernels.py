"""How many kernels a program launches: read from the compiled text of XLA."""

import re
from typing import NamedTuple

# Operations that XLA:GPU launches as a kernel of their own; others are free or host code. Metadata,
# which follow another "=", name operations too.
KERNEL = re.compile(
    r"= [^=]*?\b(fusion|custom-call|dot|copy|reduce|sort|scatter|gather|convert|transpose"
    r"|dynamic-update-slice|dynamic-slice|broadcast|convolution|copy-start)\("
)
BODY = re.compile(r"\bwhile\(.*body=%?([\w.\-]+)")


class Loop(NamedTuple):
    """A loop of a compiled program."""

    turns: int
    kernels: int  # kernels in its body, without those of loops inside
    has_loop_inside: bool


def loops(text: str) -> list[Loop]:
    """Returns the loops of a compiled program that have a known number of turns."""
    found, bodies = [], _computations(text)
    for lines in bodies.values():
        for line in lines:
            body = BODY.search(line)
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            if body and turns:
                inside = bodies[body.group(1)]
                kernels = sum(bool(KERNEL.search(x)) for x in inside)
                found.append(Loop(int(turns.group(1)), kernels, any(map(BODY.search, inside))))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """Returns the lines of each computation by its name, without comments."""
    computations: dict[str, list[str]] = {}
    current: list[str] = []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            current = computations.setdefault(head.group(1), [])
        else:
            current.append(line)
    return computations
