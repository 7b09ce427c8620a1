"""From flags and files to frozen settings: accepted values, and one-line errors for others."""

import copy
import dataclasses
import json
import string
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from absl import flags as absl_flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections.config_dict import ConfigDict, placeholder, required_placeholder

from errors import ConfigError
from settings import cli
from settings.cli import parse_args
from settings.tree import (
    as_json,
    differences,
    flatten,
    format_value,
    freeze,
    from_json,
    setting_rows,
    to_config_dict,
)
from settings.types import (
    MAX_FLOAT32,
    MAX_INT32,
    MIN_FLOAT32,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    config,
    did_you_mean,
)


@config
class Rope:
    theta: PositiveFloat = 1e4


@config
class Model:
    dim: PositiveInt = 16
    depth: PositiveInt = 2
    layers: tuple[str, ...] = ("attention+mlp",)
    kind: Literal["dense", "moe"] = "dense"
    groups: Literal["all", 2, 4] = "all"
    scan: bool = True
    # Not the default of Rope, because a missing value must come from this default.
    rope: Rope = Rope(theta=500.0)
    variants: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        if self.dim % self.depth:
            raise ConfigError(f"model.dim {self.dim} is not a multiple of depth {self.depth}")


@config
class Train:
    steps: PositiveInt = 100
    rate: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    phase: tuple[Literal["warm", "cold"], PositiveInt] = ("warm", 1)
    length: NonNegativeInt = 32


@config
class Tree:
    seed: NonNegativeInt = 0
    name: str = ""
    model: Model = Model()
    train: Train = Train()


DEFAULT = Tree()


def defaults() -> ConfigDict:
    return to_config_dict(Tree())


def declare(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("workdir", "", "folder of the run", flag_values=values)
    absl_flags.DEFINE_bool("dry_run", False, "print and stop", flag_values=values)
    absl_flags.DEFINE_integer("devices", 1, "fake devices", flag_values=values)


def read(*argv: str) -> cli.CliArgs[Tree]:
    return parse_args(argv, Tree, declare)


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.code == 2
    return message


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in the current folder; a body becomes that of `get_config(size)` after `c`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "settings_for_test", cli)
    monkeypatch.setattr(cli, "defaults", defaults, raising=False)

    def write(name: str, text: str, *, body: bool = True) -> str:
        if body:
            lines = "".join(f"    {line}\n" for line in ["c = defaults()", *text.splitlines()])
            text = "from settings_for_test import defaults\n"
            text += f"def get_config(size='tiny'):\n{lines}    return c\n"
        (tmp_path / name).write_text(text)
        return f"--config={name}"

    return write


def placed(at: Tree, **changes) -> Tree:
    """Return `at` with changed values of `section__key`."""
    for key, value in changes.items():
        *sections, name = key.split("__")
        new = {name: value}
        for section in reversed(sections):
            new = {section: dataclasses.replace(getattr(at, section), **new)}
        at = dataclasses.replace(at, **new)
    return at


# What is accepted


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.seed=7", {"seed": 7}),
        ("--config.name=a b", {"name": "a b"}),
        ("--config.name=", {"name": ""}),
        ("--config.train.rate=1", {"train__rate": 1.0}),
        ("--config.train.rate=2e-3", {"train__rate": 2e-3}),
        ("--config.train.steps=1_000", {"train__steps": 1000}),
        ("-config.train.steps=5", {"train__steps": 5}),
        ("--config.model.kind=moe", {"model__kind": "moe"}),
        ("--config.model.groups=4", {"model__groups": 4}),
        ("--config.model.scan=false", {"model__scan": False}),
        ("--config.model.scan=True", {"model__scan": True}),
        ("--noconfig.model.scan", {"model__scan": False}),
        ("--config.model.scan", {"model__scan": True}),
        ("--config.train.betas=.8,.9", {"train__betas": (0.8, 0.9)}),
        ("--config.train.betas=(0, 1)", {"train__betas": (0.0, 1.0)}),
        ("--config.train.phase=cold,3", {"train__phase": ("cold", 3)}),
        ("--config.model.layers=a+b", {"model__layers": ("a+b",)}),
        ("--config.model.layers=a@local+b,c+none", {"model__layers": ("a@local+b", "c+none")}),
        ("--config.model.layers=a+b, c+d,", {"model__layers": ("a+b", "c+d")}),
        ("--config.model.layers=('a+b',)", {"model__layers": ("a+b",)}),
        ('--config.model.layers=["a+b", "c,d"]', {"model__layers": ("a+b", "c,d")}),
        ("--config.model.layers='a,b'", {"model__layers": ("a,b",)}),
        ("--config.model.layers=", {"model__layers": ()}),
    ],
)
def test_flag_sets_a_typed_value(argument, expected):
    assert read(argument).settings == placed(DEFAULT, **expected)


def test_value_may_follow_behind_a_space_and_the_last_one_wins():
    command = read("--config.seed", "3", "--config.seed=4", "--workdir", "w", "--devices=8")
    assert command.settings.seed == 4
    assert (command.flags.workdir, command.flags.devices, command.flags.dry_run) == ("w", 8, False)


def test_flags_may_stand_before_the_file_that_they_override(write):
    file = write("x.py", "c.train.steps = 5")
    assert read("--config.train.steps=6", file).settings.train.steps == 6


def test_file_then_flags_with_where_each_value_came_from(write):
    text = "c.train.steps = {'tiny': 5, 'small': 6}[size]\nc.train.length = 32\nc.model.dim = 4"
    command = read(write("x.py", text) + ":small", "--config.model.dim=8", "--config.seed=0")
    assert command.settings == placed(DEFAULT, train__steps=6, model__dim=8)
    assert {k: o for k, o in command.provenance.items() if o != "default"} == {
        "seed": "flag",  # set, though it is the default
        "model.dim": "flag",
        "train.steps": "file",
        "train.length": "file",  # assigned, though it is the default
    }
    assert ("train.steps", "6", "file") in setting_rows(command.settings, command.provenance)
    assert [key for key, _, _ in setting_rows(*command[:2])] == list(flatten(command.settings))


def test_no_file_gives_defaults():
    command = read()
    assert command.settings == DEFAULT
    assert set(command.provenance.values()) == {"default"}


def test_sections_with_free_names_are_made_by_files_and_edited_by_flags(write):
    text = "c.model.variants.local = dict(window=256, rope=dict(theta=1e4))\n"
    text += "c.model.variants.wide = c.model.variants.local\nc.model.variants.wide.window = 512"
    file = write("x.py", text)
    command = read(
        file,
        "--config.model.variants.local.window=128",
        "--config.model.variants.local.rope.theta=2e6",
        "--config.model.variants.local.causal=true",
    )
    local = {"window": 128, "rope": {"theta": 2e6}, "causal": True}
    wide = {"window": 512, "rope": {"theta": 1e4}}
    assert as_json(command.settings)["model"]["variants"] == {"local": local, "wide": wide}
    assert command.provenance["model.variants.local.window"] == "flag"
    assert command.provenance["model.variants.wide.window"] == "file"
    hash(command.settings)


def test_numpy_scalars_and_lists_from_files(write):
    text = "import numpy as np\nc.train.steps = np.int64(5)\nc.train.rate = np.float32(.5)\n"
    text += "c.model.scan = np.bool_(False)\nc.model.layers = ['a+b']\nc.train.betas = np.array"
    command = read(write("x.py", text.replace("np.array", "[np.float64(.5), 1]")))
    expected = {"train__steps": 5, "train__rate": 0.5, "train__betas": (0.5, 1.0)}
    assert command.settings == placed(
        DEFAULT, model__scan=False, model__layers=("a+b",), **expected
    )
    json.dumps(as_json(command.settings), allow_nan=False)


def test_file_may_use_what_a_config_dict_offers(write):
    text = "c.train.length = c.train.get_ref('steps') * 2\nc.update(model=dict(dim=4))\n"
    text += "c.model.variants.update(a=dict(b=1))\nassert 'dim' in c.model and c.model.dim == 4\n"
    text += "assert not hasattr(c.model, 'dmi')"
    command = read(write("x.py", text), "--config.train.steps=10")
    assert command.settings.train.length == 20  # a reference follows the flag
    assert command.settings.model.dim == 4
    assert command.settings.model.variants == {"a": {"b": 1}}


def test_file_may_return_only_what_differs(write):
    text = "def get_config():\n    return {'model': {'rope': {}, 'dim': 4}}\n"
    command = read(write("x.py", text, body=False))
    assert command.settings == placed(DEFAULT, model__dim=4)
    assert command.provenance["model.dim"] == "file"
    assert command.provenance["train.steps"] == "default"


def test_copies_are_independent_and_still_guarded():
    c = defaults()
    twin = copy.deepcopy(c)
    twin.train.steps = 7
    assert (c.train.steps, twin.train.steps, twin.is_locked) == (100, 7, True)
    with pytest.raises(ConfigError, match="config.train.steps is 0"):
        twin.train.steps = 0


# What is refused


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        # covers C1
        ("--config.model.dmi=3", ["unknown key config.model.dmi; did you mean 'dim'?"]),
        ("--config.modle.dim=3", ["unknown key config.modle; did you mean 'model'?"]),
        ("--config.steps=3", ["unknown key config.steps; did you mean 'config.train.steps'?"]),
        ("--config.train.rope.theta=3", ["did you mean 'config.model.rope.theta'?"]),
        ("--config.qqq=3", ["unknown key config.qqq; known: seed, name, model, train"]),
        ("--config.=3", ["unknown key config."]),
        ("--config.a\nb=3", [r"unknown key config.'a\nb'"]),
        ("--config.train.items=3", ["unknown key config.train.items"]),
        ("--config.train.steps.x=3", ["config.train.steps is a value, not a section"]),
        ("--config.model.layers[0]=a", ["unknown key config.model.layers[0]; did you mean"]),
        ("--config.model.variants.a.b=3", ["unknown key config.model.variants.a"]),
        # covers C3
        ("--config.train.steps=3000000000", ["must be at most 2,147,483,647"]),
        ("--config.train.steps=256.5", ["config.train.steps", "'256.5'", "integer"]),
        ("--config.train.steps=2e3", ["config.train.steps", "'2e3'", "integer"]),
        ("--config.train.steps=٣", ["config.train.steps", "'٣'", "integer"]),
        ("--config.train.rate=١.٥", ["config.train.rate", "'١.٥'", "number"]),
        ("--config.train.steps=abc", ["config.train.steps", "'abc'", "integer"]),
        ("--config.train.steps=true", ["config.train.steps", "integer"]),
        ("--config.train.rate=abc", ["config.train.rate", "'abc'", "number"]),
        ("--config.model.scan=2", ["config.model.scan", "'2'", "True or False"]),
        ("--config.model.kind=dens", ["config.model.kind is 'dens'; did you mean 'dense'?"]),
        ("--config.train.betas=.9", ["config.train.betas", "2 entries"]),
        ("--config.train.betas=.9,x", ["config.train.betas[1]", "'x'", "number"]),
        ("--config.train.betas=(.9", ["config.train.betas", "tuple"]),
        ("--config.train.betas=({},1)", ["config.train.betas[0]", "number"]),
        # covers C4
        ("--config.train.rate=nan", ["config.train.rate is nan", "finite"]),
        ("--config.train.rate=-inf", ["config.train.rate is -inf", "finite"]),
        ("--config.train.rate=1e999", ["config.train.rate is inf", "finite"]),
        ("--config.train.rate=1e39", ["config.train.rate is 1e+39", "at most 3.4e+38 in size"]),
        ("--config.train.rate=1e-39", ["is 1e-39, must be 0 or at least 1.2e-38 in size"]),
        ("--config.train.rate=0", ["config.train.rate is 0.0, must be > 0"]),
        ("--config.train.steps=0", ["config.train.steps is 0, must be >= 1"]),
        ("--config.train.steps=-1", ["config.train.steps is -1, must be >= 1"]),
        ("--config.train.steps=", ["config.train.steps is ''", "integer"]),
        ("--config.train.betas=.9,2", ["config.train.betas[1] is 2.0", "<= 1"]),
        (f"--config.train.betas=(1,1{'0' * 400})", ["config.train.betas", "too large"]),
        (f"--config.train.steps={'9' * 5000}", ["config.train.steps"]),
        # covers C5
        ("--config.model={'dim': 3}", ["config.model is a section", "--config.model.dim=VALUE"]),
        ('--config.model={"dim": 3}', ["config.model is a section", "--config.model.dim=VALUE"]),
        ("--config.model.rope=3", ["config.model.rope is a section", ".rope.theta=VALUE"]),
        ("--config.model.variants={}", ["is a section", "variants.NAME.KEY=VALUE"]),
        ("--config.model.variants.a=1", ["is a section", "variants.a.KEY=VALUE"]),
        ("--noconfig.model", ["config.model is a section"]),
        # covers C14
        ("--configmodel.dim=3", ["unknown flag --configmodel.dim", "'--config.model.dim'"]),
        ("--wrokdir=x", ["unknown flag --wrokdir", "'--workdir'"]),
        ("--noconfig.model.dim", ["unknown flag --noconfig.model.dim"]),
        ("--qqqqq", ["unknown flag --qqqqq", "--help"]),
        ("stray", ["unexpected argument 'stray'"]),
        ("configs/x.py:tiny", ["unexpected argument", "--config=configs/x.py:tiny"]),
        ("--dry_run=maybe", ["dry_run", "maybe"]),
        ("--devices=two", ["devices", "two"]),
        ("--workdir", ["Missing value", "workdir"]),
        ("--config.seed", ["Missing value", "config.seed"]),
        ("--flagfile=nowhere", ["nowhere"]),
        # a rule between fields
        ("--config.model.depth=3", ["model.dim 16 is not a multiple of depth 3"]),
    ],
)
def test_bad_flag_is_one_line_with_key_value_rule(argument, fragments):
    message = refused(argument)
    for fragment in fragments:
        assert fragment in message


def test_flags_behind_a_positional_are_refused():  # covers C14
    assert "'now'" in refused("--dry_run", "now", "--config.seed=1")


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "None", "{}", "b'x'", "1j", "{1}", "()x"])
def test_free_sections_hold_only_what_json_holds(write, text):  # covers C4
    file = write("x.py", "c.model.variants.a = dict(b=1)")
    try:
        command = read(file, f"--config.model.variants.a.b={text}")
    except ConfigError:
        return
    assert command.settings.model.variants["a"]["b"] == text  # its owner validates the text
    json.dumps(as_json(command.settings), allow_nan=False)


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        # covers C2
        ("c.train.stesp = 5", ["unknown key config.train.stesp; did you mean 'steps'?", "line 4"]),
        ("c.trian.steps = 5", ["unknown key config.trian; did you mean 'train'?", "line 4"]),
        ("c.update(train=dict(stesp=5))", ["unknown key config.train.stesp"]),
        ("c = dict(train=dict(stesp=5))", ["unknown key config.train.stesp"]),
        ("c.unlock()\nc.new = 5", ["unknown key config.new", "line 5"]),
        (
            "c.model.variants.a = dict(b=1)\nc.model.variants.b.b = 2",
            ["unknown key config.model.variants.b; known: a"],
        ),
        # covers C3
        ("c.train.steps = 2.5", ["config.train.steps is 2.5", "integer", "line 4"]),
        ("c.train.steps = True", ["config.train.steps is True", "integer"]),
        ("c.train.steps = None", ["config.train.steps is None", "integer"]),
        ("c.train.steps = '5'", ["config.train.steps is '5'", "integer"]),
        ("c.train.rate = True", ["config.train.rate is True", "number"]),
        ("c.model.scan = 1", ["config.model.scan is 1", "True or False"]),
        ("c.model.layers = 'a+b'", ["config.model.layers is 'a+b'", "tuple"]),
        ("c.model.layers = (1,)", ["config.model.layers[0] is 1", "text"]),
        ("c.model.variants.a = 3", ["config.model.variants.a is 3", "section"]),
        ("c.model.variants = {'a b': {}}", ["config.model.variants has the name 'a b'"]),
        ("c.model.variants = {'a': {'b': object}}", ["config.model.variants.a.b"]),
        # covers C4
        ("c.train.rate = float('nan')", ["config.train.rate is nan", "finite"]),
        ("c.train.rate = 10 ** 400", ["config.train.rate", "too large"]),
        ("c.train.steps = 0", ["config.train.steps is 0, must be >= 1"]),
        ("c.model.variants.a = dict(b=float('nan'))", ["config.model.variants.a.b is nan"]),
        # covers C5
        ("c.model = dict(dim=3)", ["config.model is a section", "line 4"]),
        ("c.model = 3", ["config.model is a section"]),
        ("c.update(model=3)", []),
        # what a file may do wrong
        ("1 / 0", ["x.py, line 4 (1 / 0)", "ZeroDivisionError: division by zero"]),
        ("raise ValueError('a\\nb')", ["line 4", "ValueError: a b"]),
        ("from errors import ConfigError\nraise ConfigError('a\\nb')", ["line 5", ": a b"]),
        ("open('nowhere')", ["x.py, line 4", "FileNotFoundError", "nowhere"]),
        ("import nowhere_at_all", ["x.py, line 4", "nowhere_at_all"]),
        ("c = None", ["x.py returned None", "return c"]),
        ("c = 3", ["x.py returned 3"]),
        ("c.train.steps = {'tiny': 1}['huge']", ["x.py, line 4", "KeyError: 'huge'"]),
        ("x = = 1", ["x.py, line 4", "SyntaxError"]),
    ],
)
def test_bad_file_is_one_line_with_place(write, body, fragments):
    message = refused(write("x.py", body))
    for fragment in ["x.py", *fragments]:
        assert fragment in message
    assert "locked" not in message and "original type" not in message  # of ml_collections


def test_size_that_a_file_does_not_take(write):
    plain = write("plain.py", "def get_config():\n    return {}\n", body=False)
    assert "takes no size" in refused(f"{plain}:tiny")
    needs = write("needs.py", "def get_config(size):\n    return {}[size]\n", body=False)
    assert "needs a size: --config=needs.py:SIZE" in refused(needs)
    message = refused(f"{needs}:huge")
    assert "unknown size 'huge'" in message and "needs.py, line 2" in message
    own = (
        "from errors import ConfigError\ndef get_config(size):\n    raise ConfigError('no ' + size)"
    )
    assert "no huge" in refused(write("own.py", own, body=False) + ":huge")


def test_files_that_are_not_there(write, tmp_path):
    write("quickstart.py", "")
    (tmp_path / "run").mkdir()
    assert "did you mean 'quickstart.py'?" in refused("--config=quikstart.py")
    assert "is a folder" in refused("--config=run")
    assert "names no file" in refused("--config=")
    assert "does not exist" in refused("--config=nowhere/x.py")
    assert "does not exist" in refused("--config=" + "x" * 300 + ".py")
    assert "does not exist" in refused("--config=a\0b\n.py")
    assert "no get_config()" in refused(write("empty.py", "", body=False))
    assert "must be a .py file" in refused(write("x.yaml", "a: 1", body=False))


@pytest.mark.parametrize("make", [placeholder, required_placeholder])
def test_placeholder_must_be_filled(write, monkeypatch, make):  # covers C6 C18
    monkeypatch.setattr(cli, "open_value", lambda: make(int), raising=False)
    text = "from settings_for_test import open_value\nc.train.steps = open_value()"
    file = write("x.py", text)
    assert "config.train.steps has no value" in refused(file)
    assert "--config.train.steps=" in refused(file)
    assert read(file, "--config.train.steps=5").settings.train.steps == 5
    assert "config.train.steps" in refused(file, "--config.train.steps=x")
    assert "must be >= 1" in refused(file, "--config.train.steps=0")
    assert "line 6 (c.train.steps * 2)" in refused(write("y.py", text + "\nc.train.steps * 2"))


# JSON


def test_run_json_is_a_config_file(write):
    wanted = placed(DEFAULT, train__steps=7, model__layers=("a+b", "c+d"), name="é")
    record = json.dumps({"settings": as_json(wanted), "argv": ["ignored"]})
    command = read(write("run.json", record, body=False), "--config.seed=3")
    assert command.settings == placed(wanted, seed=3)
    assert command.provenance["train.steps"] == command.provenance["train.rate"] == "file"
    assert command.provenance["seed"] == "flag"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("import os; os.mkdir('ran')\ndef get_config(): pass", ["JSONDecodeError"]),
        ('{"settings": {"train": {"stesp": 1}}}', ["config.train.stesp; did you mean 'steps'?"]),
        ('{"settings": {"train": {"steps": null}}}', ["config.train.steps is None"]),
        ('{"settings": {"train": {"steps": 1.0}}}', ["config.train.steps is 1.0", "integer"]),
        ('{"settings": {"train": {"rate": NaN}}}', ["config.train.rate is nan", "finite"]),
        ('{"settings": {"train": {"rate": 1e400}}}', ["config.train.rate is inf", "finite"]),
        ('{"settings": {"train": {"rate": 1' + "0" * 400 + "}}}", ["train.rate", "too large"]),
        ('{"settings": {"train": 3}}', ["config.train is 3", "section"]),
        ('{"settings": {"model": {"variants": {"a.b": {}}}}}', ["variants has the name 'a.b'"]),
        ('{"settings": {"model": {"variants": {"a": {"b": null}}}}}', ["variants.a.b is None"]),
        ('{"settings": {"seed": 1, "seed": 2}}', ["'seed' twice"]),
        ('{"settings": [1]}', ["'settings'"]),
        ("[1]", ["'settings'"]),
        ("{}", ["'settings'"]),
        ("[" * 100_000, ["RecursionError"]),
        ("", ["JSONDecodeError"]),
    ],
)
def test_bad_json_is_one_line_and_nothing_runs(write, tmp_path, text, fragments):  # covers S1
    message = refused(write("run.json", text, body=False))
    for fragment in ["run.json", *fragments]:
        assert fragment in message
    assert not (tmp_path / "ran").exists()


def test_json_takes_no_size_and_must_be_text(write, tmp_path):
    assert "takes no size" in refused(write("run.json", "{}", body=False) + ":tiny")
    (tmp_path / "run.json").write_bytes(b"\xff\xfe{")
    assert "UnicodeDecodeError" in refused("--config=run.json")


def test_help_lists_everything_and_runs_no_file(write, tmp_path, capsys):  # covers S1
    file = write("evil.py", "import os\nos.mkdir('ran')\n", body=False)
    with pytest.raises(SystemExit) as caught:
        parse_args([file, "--help", "--unknown"], Tree, declare, description="Train a model.")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and not (tmp_path / "ran").exists()
    for part in ["Train a model.", "--workdir", "folder of the run", "--config.model.dim=16"]:
        assert part in text
    assert "dense | moe" in text and "integer >= 1" in text and "model.variants.NAME.KEY" in text


# One process, many calls


def test_calls_leave_no_trace(write):
    before = set(absl_flags.FLAGS)
    first = read(write("a.py", "c.train.steps = 5"), "--config.seed=1", "--dry_run")
    assert read().settings == DEFAULT and not read().flags.dry_run
    assert first.flags.dry_run and set(absl_flags.FLAGS) == before
    # a rewritten file is read again, and a second file does not inherit the first one's function
    for steps in (6, 7):
        assert read(write("a.py", f"c.train.steps = {steps}")).settings.train.steps == steps
    assert "no get_config()" in refused(write("b.py", "x = 1", body=False))


def test_failures_of_a_file_leave_defaults_alone(write):
    refused(write("a.py", "c.train.steps = 5\n1 / 0"))
    assert read().settings == DEFAULT == Tree()


# Trees


def trees() -> st.SearchStrategy[Tree]:
    names = st.text(string.ascii_lowercase, min_size=1, max_size=5)
    texts = st.text(max_size=8)
    positive = st.floats(MIN_FLOAT32, MAX_FLOAT32)
    leaf = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
    free = st.dictionaries(
        names, leaf | st.tuples(leaf, st.tuples(leaf)) | st.dictionaries(names, leaf, max_size=2)
    )
    share = st.just(0.0) | st.floats(MIN_FLOAT32, 1)
    model = st.builds(
        Model,
        dim=st.integers(1, 99).map(lambda n: 2 * n),
        layers=st.lists(texts, max_size=3).map(tuple),
        kind=st.sampled_from(["dense", "moe"]),
        groups=st.sampled_from(["all", 2, 4]),
        scan=st.booleans(),
        rope=st.builds(Rope, theta=positive),
        variants=st.dictionaries(names, free, max_size=2),
    )
    train = st.builds(
        Train, steps=st.integers(1, MAX_INT32), rate=positive, betas=st.tuples(share, share)
    )
    return st.builds(Tree, seed=st.integers(0, MAX_INT32), name=texts, model=model, train=train)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_trees_come_back_as_they_were(tree):
    assert freeze(Tree, to_config_dict(tree)) == tree
    assert from_json(Tree, json.loads(json.dumps(as_json(tree), allow_nan=False))) == tree
    assert differences(tree, tree) == []


@settings(max_examples=60, deadline=None)
@given(trees())
def test_every_leaf_can_be_typed_as_a_flag(tree):  # covers C6
    fixed = {k: v for k, v in flatten(tree).items() if not k.startswith("model.variants.")}
    command = read(*(f"--config.{key}={format_value(value)}" for key, value in fixed.items()))
    assert {k: v for k, v in flatten(command.settings).items() if k in fixed} == fixed


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["--config", "--config.", "--config.model.", "--config.train.", "--", ""]),
    st.sampled_from(["dim", "steps", "betas", "layers", "variants", "rope"]) | st.text(max_size=6),
    st.text(max_size=10),
)
def test_any_argument_is_understood_or_refused_in_one_line(start, key, value):  # covers C4
    if (argument := f"{start}{key}={value}").startswith("--flagfile"):
        return
    try:
        command = read(argument)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(as_json(command.settings), allow_nan=False)


def test_editable_is_locked_and_typed():
    c = defaults()
    assert isinstance(c, ConfigDict) and c.is_locked and c.model.is_locked
    assert not c.model.variants.is_locked
    assert isinstance(c.model.layers, tuple)
    assert list(c) == ["seed", "name", "model", "train"]
    with pytest.raises(ConfigError, match="config.model.dmi; did you mean 'dim'"):
        c.model.dmi = 3
    with pytest.raises(ConfigError, match="config.train.steps is 'x'"):
        c.train.steps = "x"
    assert "steps: 100" in str(c)


def test_what_a_tree_leaves_out_comes_from_its_parent():
    assert freeze(Tree, {"model": {"rope": {}}}) == DEFAULT
    assert DEFAULT.model.rope != Rope()


def test_frozen_accepts_numpy_and_names_the_whole_path():
    tree = {"train": {"steps": np.int32(3), "rate": 1, "betas": [np.float32(0.5), np.int64(1)]}}
    assert freeze(Tree, tree).train == Train(steps=3, rate=1.0, betas=(0.5, 1.0))
    for bad, rule in [({"model": {"rope": {"theta": -1}}}, "config.model.rope.theta is -1")]:
        with pytest.raises(ConfigError, match=rule):
            freeze(Tree, bad)


def test_differences_name_keys_and_both_values():
    other = placed(DEFAULT, train__steps=7, model__variants={"a": {"b": 1}})
    assert differences(DEFAULT, other) == [
        ("train.steps", 100, 7),
        ("model.variants.a.b", None, 1),
    ]


def test_shipped_settings_can_all_be_flags():  # covers C6
    from training.settings import Settings  # here: it imports jax

    fixed = flatten(Settings())
    assert all(isinstance(v, (bool, int, float, str, tuple)) for v in fixed.values())
    command = parse_args([f"--config.{k}={format_value(v)}" for k, v in fixed.items()], Settings)
    assert command.settings == Settings() == freeze(Settings, to_config_dict(Settings()))
    assert from_json(Settings, json.loads(json.dumps(as_json(Settings())))) == Settings()


CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("[!_]*.py"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_are_read_and_their_settings_come_back(file):  # covers C6
    from training.settings import Settings

    command = parse_args([f"--config={file}"], Settings)
    assert from_json(Settings, as_json(command.settings)) == command.settings
    assert "file" in command.provenance.values(), "a config file writes differences"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stesp", "did you mean 'steps'?"),
        ("batch", "did you mean 'batch_size'?"),  # completes one choice alone
        ("foo", "known: steps, batch_size, seq_len"),
    ],
)
def test_an_unknown_name_has_the_close_one_or_all(name, hint):
    assert did_you_mean(name, ["steps", "batch_size", "seq_len"]) == hint
