"""Progress of reading a source, on stderr: a bar on a terminal, otherwise a line at intervals."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator

PRINT_INTERVAL_SECONDS = 10  # Seconds between two lines.


@contextlib.contextmanager
def progress(description: str, total: int) -> Generator[Callable[[int, str], None], None, None]:
    """Yields a function `show(bytes_read, counts)` that updates the progress.

    Args:
        description: A phrase for the work that is done.
        total: Size of the source in bytes; 0 if it is unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counted]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total or None, counted="")
        last_print = start = time.monotonic()

        def show(bytes_read: int, counts: str) -> None:
            nonlocal last_print
            bar.update(task, completed=bytes_read, counted=counts)
            seconds = time.monotonic() - last_print
            if not console.is_terminal and seconds > PRINT_INTERVAL_SECONDS:
                last_print = time.monotonic()
                share = f"{bytes_read / total:.0%} of the source" if total else "size unknown"
                elapsed = f"{last_print - start:.0f} s"
                print(f"{description}: {counts}, {share}, {elapsed}", file=sys.stderr)

        yield show
