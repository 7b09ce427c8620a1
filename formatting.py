"""Formatters of numbers and texts for people: one set for the console, tables and boards."""

import math

SI_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
MAX_SHOWN = 60  # characters of a value in a message


def format_si(number: float, unit: str = "") -> str:
    """Returns a number with three digits and an SI prefix: 6738415616 is 6.74G, or 6.74 GFLOPs.

    Numbers beyond the largest prefix have a power of ten.
    """
    space = " " if unit else ""
    if abs(number) >= 1000 * SI_PREFIXES[0][0]:
        return f"{format_scientific(number)}{space}{unit}"
    for size, prefix in SI_PREFIXES:
        if abs(number) >= size:
            return f"{number / size:.3g}{space}{prefix}{unit}"
    return f"{number:.3g}{space}{unit}"


def format_scientific(number: float) -> str:
    """Returns a number with three digits and a power of ten, 1.25e15; small numbers stay plain."""
    if not math.isfinite(number):
        return f"{number}"
    if not number or 0.01 <= abs(number) < 1e5:
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
    mantissa, _, power = f"{number:.2e}".partition("e")
    return f"{mantissa}e{int(power)}"


def format_percent(fraction: float) -> str:
    """Returns a fraction as percent with three digits: 0.1234 is 12.3 %."""
    return f"{100 * fraction:.3g} %"


def format_bytes(count: float) -> str:
    """Returns a number of bytes with three digits in the binary unit that suits it: 15.8 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def format_mib(count: float) -> str:
    """Returns a number of bytes in MiB whatever its size, so that the rows of a table add up."""
    return f"{count / 2**20:,.1f} MiB"


def format_duration(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def replace_control_chars(text: str) -> str:
    """Returns `text` with its control characters replaced, because a terminal would obey them."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def truncate_middle(value: object) -> str:
    """Returns a value as text of at most 60 characters; a longer one loses its middle."""
    text = "(none)" if value is None else str(value)
    half = MAX_SHOWN // 2 - 2
    return text if len(text) <= MAX_SHOWN else f"{text[:half]}...{text[-half:]}"
