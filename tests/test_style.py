"""The house rules of CONTRIBUTING.md as tests: who imports whom, how long, what is never done.

A rule takes a source file and yields complaints. Each is shown code that it must refuse, so that a
rule that has gone blind fails too.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {"errors", "schema"}  # anyone may import them
BELOW = {"arch", "objectives", "data", "ops"}
HOUSE = {  # folder: what it may import beside itself
    "ops": set(),
    "arch": {"ops"},
    "objectives": {"arch", "ops"},
    "data": set(),
    "training": BELOW,
    "eval": BELOW | {"training"},
    "protocol": BELOW | {"training", "eval"},
    "hub": {"arch", "data", "training"},
    "configs": BELOW | {"training", "protocol"},
}
ROOTS = {"errors": set(), "schema": {"errors"}}  # other modules of the root are commands
OUTSIDE = {"tests", "benchmarks", "notebooks"}
COMMANDS = {path.stem for path in ROOT.glob("*.py")} - LEAVES
PROJECT = {*HOUSE, *LEAVES, *OUTSIDE, *COMMANDS}

VAGUE = {"utils.py", "common.py", "helpers.py", "misc.py"}
UNSAFE_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.load", "os.system"}
UNSAFE_SWITCHES = {"shell", "allow_pickle"}
READS_ENVIRONMENT = {
    "training/environment.py",  # records it in run.json, and sets nothing by it
    "training/cluster.py",  # tells which cluster started the process
    "preflight.py",  # adds to what XLA is told
}

Rule = Callable[[PurePosixPath, str, ast.Module], Iterator[str]]


def imports(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Imports go down the house, never up or across."""
    own = path.parts[0].removesuffix(".py")
    if own in COMMANDS or own == "benchmarks":
        return
    allowed = ROOTS[own] if own in ROOTS else HOUSE[own] | LEAVES | {own}
    for name, line in imported(tree):
        if (top := name.split(".")[0]) in PROJECT - allowed:
            yield f"{line}: {own} must not import {top}"


def lengths(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Files under 350 lines, functions under 60."""
    if (lines := len(text.splitlines())) >= 350:
        yield f"1: {lines} lines, must be under 350"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines >= 60:
                yield f"{node.lineno}: {node.name} has {lines} lines, must be under 60"


def names(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """A file is named for what it is about, and says so in its first line."""
    if path.name in VAGUE:
        yield f"1: {path.name} says nothing; name it for what is in it"
    if tree.body and not ast.get_docstring(tree):
        yield "1: no module docstring"


def safety(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Nothing that is read is ever executed."""  # covers S3
    for name, line in imported(tree):
        if name.split(".")[0] in UNSAFE_IMPORTS:
            yield f"{line}: imports {name}"
    for node in calls(tree):
        if (name := ast.unparse(node.func)) in UNSAFE_CALLS:
            yield f"{node.lineno}: calls {name}"
        for keyword in node.keywords:
            if keyword.arg in UNSAFE_SWITCHES and not is_false(keyword.value):
                yield f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"


def openness(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Interfaces are stated: no **kwargs handed on, no getattr that hides a default."""
    for node in calls(tree):
        if ast.unparse(node.func) == "getattr" and len(node.args) == 3:
            yield f"{node.lineno}: getattr with a default"
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and function.args.kwarg:
            rest = function.args.kwarg.arg
            for node in calls(function):
                if any(k.arg is None and ast.unparse(k.value) == rest for k in node.keywords):
                    yield f"{node.lineno}: {function.name} hands on **{rest}"


def environment(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """A setting is a setting: no environment variable is read, but for the record."""
    if str(path) in READS_ENVIRONMENT:
        return
    written = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in written:
            if ast.unparse(node) in ("os.environ", "os.environb", "os.getenv"):
                yield f"{node.lineno}: reads {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in ("environ", "environb", "getenv"):
                    yield f"{node.lineno}: imports os.{alias.name}"


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of imported modules; a relative import stays in its folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, node.lineno


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def sources() -> list[PurePosixPath]:
    """All source files but tests and notebooks, from the root."""
    folders = [ROOT / name for name in (*HOUSE, "benchmarks")]
    found = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    return sorted(PurePosixPath(file.relative_to(ROOT).as_posix()) for file in found)


def complaints(rule: Rule, path: PurePosixPath, text: str) -> list[str]:
    return [f"{path}:{what}" for what in rule(path, text, ast.parse(text))]


RULES = {r.__name__: r for r in (imports, lengths, names, safety, openness, environment)}


@pytest.mark.parametrize("rule", RULES)
def test_house_rule_holds(rule):
    found = []
    for path in sources():
        found += complaints(RULES[rule], path, (ROOT / path).read_text("utf-8"))
    assert not found, "\n".join(found)


def test_every_folder_of_source_is_in_the_house():
    known = {*HOUSE, *OUTSIDE, "docs"}
    folders = {file.relative_to(ROOT).parts[0] for file in ROOT.glob("[!.]*/**/*.py")}
    assert folders <= known, f"{folders - known}: add the folder to HOUSE"
    assert len(sources()) > 20


LONG = "def f():\n" + "    x = 1\n" * 60


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        ("imports", "ops/x.py", "import arch"),
        ("imports", "ops/x.py", "def f():\n    from training.mesh import y"),
        ("imports", "arch/x.py", "from objectives import causal_lm"),
        ("imports", "objectives/x.py", "import data.store"),
        ("imports", "data/x.py", "import ops"),
        ("imports", "training/x.py", "from eval import harness"),
        ("imports", "training/x.py", "import train"),
        ("imports", "eval/x.py", "from protocol import plan"),
        ("imports", "protocol/x.py", "from hub import llama"),
        ("imports", "hub/x.py", "from eval import harness"),
        ("imports", "configs/x.py", "from eval import harness"),
        ("imports", "arch/x.py", "from tests import style"),
        ("imports", "arch/train.py", "import data"),
        ("imports", "schema.py", "from training import flags"),
        ("imports", "errors.py", "import schema"),
        ("lengths", "ops/x.py", "x = 1\n" * 350),
        ("lengths", "ops/x.py", LONG),
        ("names", "ops/utils.py", '"""Docstring."""'),
        ("names", "ops/x.py", "x = 1"),
        ("safety", "ops/x.py", "import pickle"),
        ("safety", "ops/x.py", "from pickle import loads"),
        ("safety", "ops/x.py", "eval('1')"),
        ("safety", "ops/x.py", "exec('1')"),
        ("safety", "ops/x.py", "yaml.load(x)"),
        ("safety", "ops/x.py", "torch.load(x)"),
        ("safety", "ops/x.py", "np.load(x, allow_pickle=True)"),
        ("safety", "ops/x.py", "subprocess.run(x, shell=True)"),
        ("openness", "ops/x.py", "getattr(x, 'y', None)"),
        ("openness", "ops/x.py", "def f(**rest):\n    return g(1, **rest)"),
        ("environment", "ops/x.py", "import os\nos.environ['A']"),
        ("environment", "ops/x.py", "import os\nos.environ.get('A')"),
        ("environment", "ops/x.py", "import os\nos.getenv('A')"),
        ("environment", "ops/x.py", "from os import environ"),
    ],
)
def test_rule_refuses(rule, path, text):
    assert complaints(RULES[rule], PurePosixPath(path), text)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        ("imports", "training/x.py", "import arch, schema, errors, jax\nfrom training import mesh"),
        ("imports", "train.py", "from eval import harness"),
        ("imports", "benchmarks/x.py", "from hub import llama"),
        ("lengths", "ops/x.py", "x = 1\n" * 349),
        ("names", "ops/__init__.py", ""),
        ("safety", "ops/x.py", "ast.literal_eval(x)\nmodel.eval()\nnp.load(x, allow_pickle=False)"),
        ("openness", "ops/x.py", "f(**settings)\ngetattr(x, 'y')"),
        ("environment", "ops/x.py", "import os\nos.environ['XLA_FLAGS'] = 'x'"),
    ],
)
def test_rule_admits(rule, path, text):
    assert not complaints(RULES[rule], PurePosixPath(path), text)
