"""The file fit.json that `python -m protocol.fit` writes: fitted laws, with the runs of each.

It is read without trust, like a run folder. `protocol/board/fitted_laws.py` holds its runs against
those of a board.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from errors import DataError
from formatting import format_scientific, format_si
from protocol.board.columns import format_score
from protocol.records.safe_read import CheckedFields, parse_object, read_file, sanitize
from protocol.statistics.hypothesis_tests import Interval

FORMAT = 1
MAX_BYTES = 16 * 2**20
MAX_REPORTS = 200
CONSTANTS = ("E", "A", "alpha", "B", "beta")
OPTIMUM_KEYS = ("budget", "params", "tokens", "loss", "extrapolation")
APPROACHES = {
    "1": "approach 1",
    "2": "approach 2",
    "3": "approach 3",
    "surface": "the surface",
}
FIT_AGAIN = "fit again with python -m protocol.fit"


class FittedRun(NamedTuple):
    """A run whose score is a point of a fit."""

    folder: str
    run_id: str
    content_hash: str  # SHA-256 over all files that were read.


class FittedConstant(NamedTuple):
    """A constant of a law, with its 95 % interval."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.4g} ({low:.4g} to {high:.4g})"


class FittedOptimum(NamedTuple):
    """The compute-optimal N and D at a budget."""

    budget: float
    params: float
    tokens: float
    loss: float
    extrapolation: float  # Factor by which N or D is outside the points.
    params_interval: Interval

    def __str__(self) -> str:
        ends = " to ".join(map(format_si, self.params_interval))
        far = f", extrapolated {self.extrapolation:.3g}x" * (self.extrapolation > 1.001)
        return (
            f"at {format_scientific(self.budget)} FLOPs N {format_si(self.params)} ({ends}), D "
            f"{format_si(self.tokens)}, loss {format_score(self.loss)}{far}"
        )


class FittedLaw(NamedTuple):
    """A law of a candidate by one approach."""

    candidate: str
    approach: str
    n_runs: int
    problem: str  # Why this approach has no fit; blank if it has one.
    constants: Mapping[str, FittedConstant]  # Of L = E + A / N^alpha + B / D^beta.
    exponent: FittedConstant | None  # a of N = k C^a, of approaches 1 and 2.
    optima: tuple[FittedOptimum, ...]

    @property
    def sentence(self) -> str:
        """The law in words."""
        source = f"{self.candidate}, by {APPROACHES[self.approach]} through {self.n_runs} runs"
        if self.problem:
            return f"{source}: not fitted, {self.problem.rstrip('.')}."
        if self.exponent is not None:
            return f"{source}: the optimal N grows as C^a, a = {self.exponent}."
        numbers = ", ".join(f"{name} = {value}" for name, value in self.constants.items())
        optima = "".join(f"; {optimum}" for optimum in self.optima)
        return f"{source}: L = E + A/N^alpha + B/D^beta, {numbers}{optima}."

    @property
    def json_tree(self) -> dict[str, object]:
        """The law as leaderboard.json has it."""
        e = self.exponent
        return {
            **{"candidate": self.candidate, "approach": self.approach, "n_runs": self.n_runs},
            "problem": self.problem,
            "constants": {
                name: _finite((c.value, *c.interval)) for name, c in self.constants.items()
            },
            "exponent": e and _finite((e.value, *e.interval)),
            "optima": [
                {key: _finite([o._asdict()[key]])[0] for key in OPTIMUM_KEYS}
                | {"params_interval": _finite(o.params_interval)}
                for o in self.optima
            ],
        }


class CandidateFit(NamedTuple):
    """The laws of one candidate, with the content hash of each run that they were fitted to."""

    name: str
    runs: Mapping[str, FittedRun]  # By run_id.
    laws: tuple[FittedLaw, ...]


class FitFile(NamedTuple):
    """All reports of a fit.json."""

    name: str
    sha256: str
    reports: tuple[CandidateFit, ...]


def read_fit_file(path: Path) -> FitFile:
    """Returns the reports of the fit.json at `path`.

    Raises:
        DataError: if the file does not exist, is damaged or has another format.
    """
    data = read_file(path.parent, path.name, max_bytes=MAX_BYTES)
    if data is None:
        raise DataError(f"{sanitize(str(path))} does not exist; give the fit.json of a fit")
    name = sanitize(path.name)
    reports = (top := parse_object(data, name)).objects("reports")
    if top.count("format") != FORMAT or len(reports) > MAX_REPORTS:
        raise DataError(
            f"{name} has format {top.count('format')} and {len(reports)} reports, must have format "
            f"{FORMAT} and at most {MAX_REPORTS}; {FIT_AGAIN}"
        )
    read = (
        CandidateFit(
            report.text("name", 80),
            {
                run.text("run_id"): FittedRun(
                    *(run.text(key) for key in ("folder", "run_id", "content_hash"))
                )
                for run in report.objects("runs")
            },
            tuple(_read_laws(report)),
        )
        for report in reports
    )
    return FitFile(name, hashlib.sha256(data).hexdigest(), tuple(read))


def _read_laws(report: CheckedFields) -> Iterator[FittedLaw]:
    fits, n_runs = report.section("fits"), len(report.objects("runs"))
    for approach in APPROACHES:
        fit = fits.section(approach)
        if not fit.tree:
            continue
        law, low, high = (fit.section(key) for key in ("law", "low", "high"))
        constants = {
            name: FittedConstant(
                _number(law, name), Interval(_number(low, name), _number(high, name))
            )
            for name in (CONSTANTS if law.tree else ())
        }
        exponent = None
        if fit.section("params").tree:
            ends = _interval(fit, "exponent_interval")
            exponent = FittedConstant(_number(fit.section("params"), "exponent"), ends)
        yield FittedLaw(
            *(report.text("name", 80), approach, n_runs, fit.text("problem", 300)),
            *(constants, exponent, tuple(map(_read_optimum, fit.objects("optima")))),
        )


def _read_optimum(fields: CheckedFields) -> FittedOptimum:
    numbers = {key: _number(fields, key) for key in OPTIMUM_KEYS}
    return FittedOptimum(**numbers, params_interval=_interval(fields, "params_interval"))


def _number(fields: CheckedFields, key: str) -> float:
    """Returns a number.

    Raises:
        DataError: if it is missing.
    """
    value = fields.number(key)
    if value is None:
        raise DataError(f"{fields.name} has no {key}; {FIT_AGAIN}")
    return value


def _interval(fields: CheckedFields, key: str) -> Interval:
    """Returns an interval; NaN for an end that is not stated."""
    ends = [math.nan if end is None else end for end in fields.numbers(key)]
    return Interval(*ends) if len(ends) == 2 else Interval(math.nan, math.nan)


def _finite(values: Iterable[float]) -> list[float | None]:
    """Returns the values; None in place of one that is not finite, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in values]
