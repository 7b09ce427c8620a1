"""Tables of points: CSV files with the columns params, tokens and loss, and what may be beside."""

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import ConfigError, DataError
from protocol.fit.points import PointSet
from protocol.statistics.scaling_law import Point
from settings.types import did_you_mean

MAX_BYTES = 64 << 20  # Limit of a file of points.
MAX_ROWS = 20_000  # Limit of rows that are fitted; all resamples are fitted as one array.
COLUMN_NAMES = {  # Column of a table: the names that are accepted for it.
    "params": ("params", "n", "N"),
    "tokens": ("tokens", "d", "D"),
    "loss": ("loss",),
    "training_flops": ("training_flops",),
    "epochs": ("epochs",),
    "budget": ("budget", "budget_flops"),
    "run": ("run",),
    "before_cooldown": ("before_cooldown",),
}
REQUIRED = ("params", "tokens", "loss")
POSITIVE = (*REQUIRED, "epochs")  # Columns whose numbers are above 0.
RULES = {"run": "a whole number of 0 or more", "before_cooldown": "0 or 1"}


class TableRow(NamedTuple):
    """A row of a table with its place in the file."""

    line: int  # The last line of the row, from 1 on.
    n_cells: int
    cells: Mapping[str, str]  # By column.


def read_points(path: Path, where: Mapping[str, str], sha256: str = "") -> PointSet:
    """Reads a CSV file with the columns params, tokens and loss.

    Args:
        path: the file.
        where: values that columns must have, such as {"source": "llama_3"}.
        sha256: the SHA-256 that the file must have, or its beginning; blank: any.

    Raises:
        DataError: if the file has another hash, lacks a column or has no number in one.
        ConfigError: if `where` names no column of the file.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size} bytes, at most {MAX_BYTES} are read; give fewer rows")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(sha256.lower()):
        raise DataError(f"{path} has the SHA-256 {digest}, not {sha256}; download it again")
    header, table = _read_table(path, data)
    for key in where:
        if key not in header:
            raise ConfigError(f"--where names the column {key!r}; {did_you_mean(key, header)}")
    columns = _find_columns(path, header, where)
    _check_lengths(path, header, table)
    rows = [row for row in table if all(row.cells[key] == value for key, value in where.items())]
    named = " with " + ", ".join(f"{k}={v}" for k, v in where.items()) if where else ""
    if not rows:
        raise DataError(f"{path} has no row{named}; give another table, or another --where")
    if len(rows) > MAX_ROWS:
        raise DataError(
            f"{path} has {len(rows)} rows{named}, at most {MAX_ROWS} are fitted; select rows with "
            "--where"
        )
    points = tuple(_row_point(path, row, columns) for row in rows)
    source = f"{path.name} (sha256 {digest[:12]}), {len(points)} rows"
    if n_repeated := len(points) - len({*points}):
        source += f", of which {n_repeated} repeat an earlier row and count as further seeds"
    return PointSet(" ".join(where.values()) or path.stem, points, source)


def _read_table(path: Path, data: bytes) -> tuple[list[str], list[TableRow]]:
    """Returns the names of the columns and the rows of a table.

    Raises:
        DataError: if it is no table of commas.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 from byte {error.start} on; save the table as CSV in UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        rows = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}, is no table of commas ({error}); correct it"
        ) from error
    return header, [
        TableRow(line, len(cells), dict(zip(header, map(str.strip, cells), strict=False)))
        for line, cells in rows
    ]


def _check_lengths(path: Path, header: Sequence[str], table: Sequence[TableRow]) -> None:
    """Refuses rows with more or fewer cells than the header.

    Raises:
        DataError: if there is one.
    """
    for row in table:
        if row.n_cells != len(header):
            raise DataError(
                f"{path}, line {row.line} has {row.n_cells} cells, must have {len(header)} as its "
                "header; write numbers without commas, and leave no cell out"
            )


def _find_columns(path: Path, header: Sequence[str], where: Mapping[str, str]) -> dict[str, str]:
    """Returns the name that the table has for each column; blank: it has none.

    Raises:
        DataError: if a column is missing, or there are two of a kind.
    """
    columns = {}
    for key, names in {**COLUMN_NAMES, **{name: (name,) for name in where}}.items():
        matches = [name for name in header if name in names]
        if len(matches) > 1:
            raise DataError(
                f"{path} has the columns {', '.join(map(repr, matches))}, must have one for {key}; "
                "remove or rename the others"
            )
        if not matches and key in REQUIRED:
            raise DataError(
                f"{path} has no column {key!r} among {[*header[:12]]}; a table of points has "
                "params, tokens and loss, separated by commas, and may have budget, "
                "training_flops, epochs, run and before_cooldown"
            )
        columns[key] = matches[0] if matches else ""
    return {key: columns[key] for key in COLUMN_NAMES}


def _row_point(path: Path, row: TableRow, columns: Mapping[str, str]) -> Point:
    """Returns the point of a row.

    Raises:
        DataError: if a cell is no number, or is out of range.
    """
    values: dict[str, float] = {}
    for key, name in columns.items():
        text = row.cells[name] if name else ""
        if not text and key not in REQUIRED:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        is_valid = 0 < value < math.inf if key in POSITIVE else 0 <= value < math.inf
        if key in RULES:
            is_valid &= value.is_integer() and (key == "run" or value <= 1)
        if not is_valid:
            rule = "a number above 0" if key in POSITIVE else "a number of 0 or more"
            raise DataError(
                f"{path}, line {row.line}: {name} is {text!r}, must be {RULES.get(key, rule)}; "
                "write a number alone, such as 7e9, or remove the row"
            )
        values[key] = value
    run, before_cooldown = (int(values.pop(key, 0.0)) for key in RULES)
    return Point(**values, run=run, before_cooldown=before_cooldown)
