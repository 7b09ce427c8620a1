"""docs/renames.json: every new name exists, and an old name is refused by its new one."""

import ast
import functools
import json
from pathlib import Path

import pytest

import compare
import train
from data.prepare import __main__ as prepare_command
from errors import ConfigError
from protocol.study.study import load_study
from settings import renames
from settings.cli import parse_args
from settings.tree import flatten, from_json
from settings.types import validate
from training.settings import Settings

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "docs" / "renames.json").read_text("utf-8"))


def path_of(module):
    file = ROOT / f"{module.replace('.', '/')}.py"
    return file if file.exists() else ROOT / module.replace(".", "/") / "__init__.py"


@functools.cache
def names_in(module):
    """The names that a module binds at its top, and the members of its classes."""
    names = set()
    for node in ast.parse(path_of(module).read_text("utf-8")).body:
        for part in ast.walk(node):
            if isinstance(part, (ast.ClassDef, ast.FunctionDef)):
                names.add(part.name)
            elif isinstance(part, ast.Name):
                names.add(part.id)
            elif isinstance(part, ast.Attribute):
                names.add(part.attr)
    return names


def test_every_new_name_exists():
    assert all(path_of(module).exists() for module in TABLE["modules"].values())
    for kind in ("classes", "functions"):
        for new in TABLE[kind].values():
            module, _, name = new.rpartition(".")
            assert name in names_in(module), new
    for new in TABLE["fields"].values():
        module, owner, name = new.rsplit(".", 2)
        assert {owner, name} <= names_in(module), new


def test_no_old_module_is_there():
    new = set(TABLE["modules"].values())
    old = {module for module in TABLE["modules"] if module not in new}
    packages = {module.rpartition(".")[0] for module in new}  # training.run is a package now
    assert not [module for module in old - packages if path_of(module).exists()]


def test_every_setting_is_known_by_its_new_name_alone():
    known = set(flatten(Settings()))
    sections = {key.rpartition(".")[0] for key in known}
    for old, new in TABLE["settings"].items():
        assert new in known | sections and old not in known, (old, new)


@pytest.mark.parametrize("old", sorted(TABLE["settings"]))
def test_an_old_setting_is_refused_by_its_new_name(old):
    with pytest.raises(ConfigError, match=f"now '(config.)?{TABLE['settings'][old]}") as error:
        parse_args([f"--config.{old}=1"], Settings, train.define_flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--processes=2"],
        ["--join_timeout=3"],
        ["--coordinator", "host:1"],
        ["--stage=report"],
        ["--index=3"],
    ],
    ids=" ".join,
)
def test_an_old_flag_is_refused_by_its_new_name(arguments):
    flags = compare.define_flags if arguments[0][2:7] in ("stage", "index") else train.define_flags
    old = arguments[0] if "stage" in arguments[0] else arguments[0].partition("=")[0]
    with pytest.raises(ConfigError, match=f"{old} is now {TABLE['flags'][old]}"):
        parse_args(arguments, Settings, flags)


def test_an_old_flag_of_another_command_is_refused_by_its_new_name(capsys):
    assert prepare_command.main(["--path=x", "--out=y", "--near=.5"]) == 2
    assert "--near is now --jaccard_threshold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c.train.batch = 4", "unknown key config.train.batch; it is now 'train.batch_size'"),
        ("c.contrastive.positives = 'given'", "'given'; it is now 'pairs'"),
        ("from training.tree import x", "training.tree is now settings.tree"),
        ("from arch.terms import Amount", "arch.terms is now arch.weighted_sum"),
        ("import schema", "schema is now settings.types"),
    ],
)
def test_an_old_name_in_a_config_file_is_refused_by_its_new_name(tmp_path, text, message):
    file = tmp_path / "old.py"
    head = "from training.settings import defaults\n\n\ndef get_config():\n    c = defaults()\n"
    file.write_text(f"{head}    {text}\n    return c\n")
    with pytest.raises(ConfigError, match="old.py, line 6") as error:
        parse_args([f"--config={file}"], Settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_old_field_of_a_study_is_refused_by_its_new_name(tmp_path):
    file = tmp_path / "old.py"
    study = "Study(candidates={'a': {}, 'b': {}}, reference='a', rule='size')"
    file.write_text(
        f"from protocol.study.study import Study\n\n\ndef study():\n    return {study}\n"
    )
    with pytest.raises(ConfigError, match="Study.rule is now Study.match_by"):
        load_study(str(file))


def test_the_settings_of_an_old_run_are_refused_by_their_new_names():
    with pytest.raises(ConfigError, match="it is now 'model.vocab_size'"):
        from_json(Settings, {"model": {"vocab": 384}})
    variant = {"model": {"variants": {"a": {"head_width": 4}}, "layers": ["attention@a+mlp"]}}
    with pytest.raises(ConfigError, match="it is now 'model.variants.a.head_dim'"):
        from_json(Settings, variant)


def test_without_the_table_an_unknown_name_has_the_nearest_one(monkeypatch, tmp_path):
    monkeypatch.setattr(renames, "TABLE", tmp_path / "none.json")
    renames.load_renames.cache_clear()
    try:
        with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
            from_json(Settings, {"train": {"batch": 4}})
    finally:
        renames.load_renames.cache_clear()


def test_a_value_that_was_never_renamed_has_the_nearest_one():
    hint = Settings.__dataclass_fields__["objective"].type
    with pytest.raises(ConfigError, match="did you mean 'causal_lm'"):
        validate("causal", hint, "config.objective")
