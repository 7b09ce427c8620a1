"""The keys of a run: rows that differ in one are not ranked together (protocol, item 14)."""

from collections.abc import Mapping

from protocol.columns import AXES
from protocol.declared import Study
from protocol.untrusted import Fields, clean, leaves

KEYS = (
    *("objective", "data", "tokenizer", "length", "batch", "precision", "optimiser", "start"),
    *("metric", "evaluation", "tuning trials", "hardware"),  # hardware: where time is matched
)
UNSCORED = "none"  # instead of what judged a run
COMPILERS = ("jax", "libtpu", "tokamax")  # how their packages' names begin


def keys(
    run: Fields,
    settings: Fields,
    objective: str,
    metric: str,
    versions: Mapping[str, str],
    study: Study,
) -> dict[str, str]:
    """The texts of KEYS."""
    timed = AXES.get(study.axis) == "seconds"
    data, prints = settings.section("data"), run.section("fingerprints")
    trials = "not declared" if study.trials is None else str(study.trials)
    return {
        "objective": " ".join([objective, *_objective(settings, objective, study.varies)]),
        "data": f"{data.text('source')} {prints.text('data')}",
        "tokenizer": f"{data.text('tokenizer')} {prints.text('tokenizer')}",
        "length": f"{settings.section('train').count('length')} tokens",
        "batch": f"{settings.section('train').count('batch')} sequences",
        "precision": settings.section("model").text("dtype", 20),
        "optimiser": settings.section("optimizer").text("name", 40),
        "start": run.section("flags").text("init_from") or "from scratch",
        "metric": metric or "none",
        "evaluation": versions.get(metric, UNSCORED),
        "tuning trials": trials,
        "hardware": machine(run) if timed else "",
    }


def machine(run: Fields) -> str:
    """Devices and the versions that programs for them are made by: seconds elsewhere are others."""
    devices, packages = run.section("devices"), run.section("packages")
    names = [name for name in packages.tree if name.startswith(COMPILERS)]
    found = [f"{name} {packages.text(name, 40)}" for name in sorted(names)]
    if devices.tree:
        found.insert(0, f"{devices.count('count')} x {devices.text('kind', 60)}")
    return clean(", ".join(found))


def _objective(settings: Fields, objective: str, varies: tuple[str, ...] = ()) -> list[str]:
    """Its settings; of a mixture those of its parts too, of contrastive learning the dropout that
    makes views differ. In what a study declares to vary, its rows may differ."""
    own = leaves(settings.section(objective).tree)
    under = tuple(f"{name}." for name in varies)
    kept = {k: v for k, v in own.items() if not f"{objective}.{k}.".startswith(under)}
    found = [f"{key}={value}" for key, value in kept.items()]
    found += [f"varies={name}" for name in varies if name.startswith(f"{objective}.")]
    if objective == "contrastive":
        model = settings.section("model")
        sites = (model.section(name).amount("dropout") or 0 for name in ("embed", "block"))
        found.append("dropout=" + ",".join(f"{rate:g}" for rate in sites))
    if objective == "mixture":
        listed = settings.section("mixture").tree.get("parts")
        names = [part[0] for part in listed or [] if isinstance(part, list) and part]
        for name in (n for n in names if isinstance(n, str) and n != "mixture"):
            found += [f"{name}.{text}" for text in _objective(settings, name, varies)]
    return found
