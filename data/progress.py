"""How far a source is read: a bar on a terminal, else a line now and then; on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS = 10  # between lines


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A `show(read, counted)` for bytes read of `total` (0: unknown) and what came of them."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counted]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total or None, counted="")
        shown = began = time.monotonic()

        def show(read: int, counted: str) -> None:
            nonlocal shown
            bar.update(task, completed=read, counted=counted)
            if not console.is_terminal and time.monotonic() - shown > SECONDS:
                shown = time.monotonic()
                share = f"{read / total:.0%} of the source" if total else "the source goes on"
                print(f"{what}: {counted}, {share}, {shown - began:.0f} s", file=sys.stderr)

        yield show
