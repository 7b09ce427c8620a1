"""The house rules of CONTRIBUTING.md as tests: who imports whom, how long, what is never done.

A rule takes a source file and yields complaints. Each is shown code that it must refuse, so that a
rule that has gone blind fails too.
"""

import ast
import functools
import graphlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = {"errors", "formatting", "storage"}  # any module may import them
BELOW = {"settings", "ops", "arch", "objectives", "data"}
HOUSE = {  # folder: the folders that it may import beside itself
    "settings": set(),
    "storage": set(),
    "ops": {"settings"},
    "arch": {"settings", "ops"},
    "objectives": {"settings", "arch", "ops"},
    "data": {"settings"},
    "training": BELOW,
    "eval": BELOW | {"training"},
    "protocol": BELOW | {"training", "eval"},
    "hub": {"settings", "arch", "data", "training"},
    "configs": BELOW | {"training", "protocol"},
}
ROOTS = {"errors": set(), "formatting": {"errors"}}  # the other modules of the root are commands
OUTSIDE = {"tests", "benchmarks", "notebooks"}
COMMANDS = {path.stem for path in ROOT.glob("*.py")} - LEAVES
PROJECT = {*HOUSE, *LEAVES, *OUTSIDE, *COMMANDS}
NO_JAX = ("protocol.board", "protocol.records")  # the board reads run folders without JAX
MAX_FILES = 20  # source files of a folder
MAX_LINES, MAX_FUNCTION_LINES = 400, 60

# Names that say nothing of the content: participles, and pronouns that need a reader's memory.
BANNED = {
    *("found", "own", "known", "made", "kept", "most", "asked", "said", "told", "wanted", "given"),
    *("held", "judged", "heard", "place", "rest", "more", "every", "whole", "apart", "both"),
    *("here", "now", "it"),
}

VAGUE = {"utils.py", "common.py", "helpers.py", "misc.py"}
UNSAFE_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.load", "os.system"}
UNSAFE_SWITCHES = {"shell", "allow_pickle"}
READS_ENVIRONMENT = {
    "training/run/provenance.py",  # records it in run.json, and sets nothing by it
    "training/distributed/cluster_env.py",  # tells which cluster started the process
    "preflight.py",  # adds to XLA_FLAGS
}

DIGIT_METHODS = ("isdigit", "isdecimal", "isnumeric")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Rule = Callable[[PurePosixPath, str, ast.Module], Iterator[str]]


def imports(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Imports go down the house, never up or across; a command may import everything."""
    own = path.parts[0].removesuffix(".py")
    if own in COMMANDS or own == "benchmarks" or path.name == "__main__.py":
        return
    allowed = ROOTS[own] if own in ROOTS else HOUSE[own] | LEAVES | {own}
    for name, line in imported(tree):
        if (top := name.split(".")[0]) in PROJECT - allowed:
            yield f"{line}: {own} must not import {top}"


def lengths(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Files under 400 lines, functions under 60 besides the docstring."""
    if (lines := len(text.splitlines())) >= MAX_LINES:
        yield f"1: {lines} lines, must be under {MAX_LINES}"
    for node in nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node):
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if lines >= MAX_FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {lines} lines, limit {MAX_FUNCTION_LINES}"


def identifiers(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """A name is a noun of its content, not a participle or a pronoun."""
    fields = {  # of settings: `log.every`
        id(node.target)
        for cls in nodes(tree)
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "every"
    }
    for node in nodes(tree):
        name = ""
        if id(node) in fields:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        if name.strip("_") in BANNED:
            yield f"{getattr(node, 'lineno', 1)}: the name {name} says nothing of the content"


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
        if (name := dotted(node.func)) in UNSAFE_CALLS:
            yield f"{node.lineno}: calls {name}"
        for keyword in node.keywords:
            if keyword.arg in UNSAFE_SWITCHES and not is_false(keyword.value):
                yield f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"


def openness(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Interfaces are stated: no **kwargs handed on, no getattr that hides a default."""
    for node in calls(tree):
        if dotted(node.func) == "getattr" and len(node.args) == 3:
            yield f"{node.lineno}: getattr with a default"
    for function in nodes(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and function.args.kwarg:
            rest = function.args.kwarg.arg
            for node in calls(function):
                if any(k.arg is None and dotted(k.value) == rest for k in node.keywords):
                    yield f"{node.lineno}: {function.name} hands on **{rest}"


def environment(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """A setting is a setting: no environment variable is read, but for the record."""
    if str(path) in READS_ENVIRONMENT:
        return
    written = {
        id(node.value)
        for node in nodes(tree)
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
    }
    for node in nodes(tree):
        if isinstance(node, ast.Attribute) and id(node) not in written:
            if dotted(node) in ("os.environ", "os.environb", "os.getenv"):
                yield f"{node.lineno}: reads {dotted(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in ("environ", "environb", "getenv"):
                    yield f"{node.lineno}: imports os.{alias.name}"


def digits(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[str]:
    """Digits are 0 to 9: text of users is checked by `is_digits`, str's own methods take others."""
    for node in nodes(tree):
        is_method = isinstance(node, ast.Attribute) and node.attr.startswith(DIGIT_METHODS)
        if is_method and str(path) != "settings/types.py":
            yield f"{node.lineno}: calls {node.attr}, must be settings.types.is_digits"


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of imported modules; a relative import stays in its folder."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, node.lineno


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in nodes(tree) if isinstance(node, ast.Call))


@functools.cache
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree))


def dotted(node: ast.expr) -> str:
    """Returns "a.b.c" of such an expression, "" of any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def sources() -> list[PurePosixPath]:
    """All source files but tests and notebooks, from the root."""
    folders = [ROOT / name for name in (*HOUSE, "benchmarks")]
    found = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    return sorted(PurePosixPath(file.relative_to(ROOT).as_posix()) for file in found)


@functools.cache
def parsed(path: PurePosixPath) -> tuple[str, ast.Module]:
    text = (ROOT / path).read_text("utf-8")
    return text, ast.parse(text)


def complaints(rule: Rule, path: PurePosixPath, text: str, tree: ast.Module) -> list[str]:
    return [f"{path}:{what}" for what in rule(path, text, tree)]


RULES = {
    rule.__name__: rule
    for rule in (imports, lengths, names, identifiers, safety, openness, environment, digits)
}


@pytest.mark.parametrize("rule", RULES)
def test_house_rule_holds(rule):
    found = []
    for path in sources():
        found += complaints(RULES[rule], path, *parsed(path))
    assert not found, "\n".join(found)


def test_every_folder_of_source_is_in_the_house():
    known = {*HOUSE, *OUTSIDE, "docs"}
    folders = {file.relative_to(ROOT).parts[0] for file in ROOT.glob("[!.]*/**/*.py")}
    assert folders <= known, f"{folders - known}: add the folder to HOUSE"
    assert len(sources()) > 20


def module_name(path: PurePosixPath) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """The modules of the project that each module imports, inside functions too."""
    modules = {module_name(path): path for path in sources() if path.parts[0] != "benchmarks"}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in nodes(parsed(path)[1]):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & {*modules}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    graph[name] |= {full if full in modules else node.module} & {*modules}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return [error.args[1]]
    return []


def test_no_modules_import_each_other():
    assert not circles(import_graph())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_the_board_needs_no_jax():
    graph = import_graph()
    shared = {"settings.command", "settings.flag_parser", "storage"}  # of every command
    reached = {name for name in graph if name.startswith(NO_JAX)} | shared
    while new := set().union(*(graph[name] for name in reached)) - reached:
        reached |= new
    for name in reached:
        path = PurePosixPath(name.replace(".", "/") + ".py")
        path = path if (ROOT / path).exists() else path.with_suffix("") / "__init__.py"
        libraries = {library.split(".")[0] for library, _ in imported(parsed(path)[1])}
        assert not libraries & {"jax", "flax", "optax", "orbax"}, name
    command = names_at_import(parsed(PurePosixPath("leaderboard.py"))[1]) - shared
    assert not {name for name in command if name.split(".")[0] in {*HOUSE, "jax"} - {"protocol"}}
    inside = {name for name in command if name.startswith("protocol")}
    assert inside and all(name.startswith(NO_JAX) for name in inside)


def names_at_import(tree: ast.Module) -> set[str]:
    """Returns what a file imports before one of its functions is called."""
    outside = ast.Module([node for node in tree.body if not isinstance(node, DEFINITIONS)], [])
    return {name for name, _ in imported(outside)}


def libraries_at_import(tree: ast.Module) -> set[str]:
    return {name.split(".")[0] for name in names_at_import(tree)}


def test_no_file_loads_torch_before_a_function_needs_it():
    """Encoders for mteb and models for lm-eval are made without these libraries."""
    heavy = {"torch", "mteb", "lm_eval", "transformers"}
    for path in sources():
        if path.parts[0] != "benchmarks":
            assert not libraries_at_import(parsed(path)[1]) & heavy, path
    late = "import jax\ndef f():\n    import torch"
    assert libraries_at_import(ast.parse(late)) == {"jax"}
    assert libraries_at_import(ast.parse("if x:\n    from torch import nn")) == {"torch"}


def test_no_folder_has_too_many_files():
    counts = Counter(path.parent for path in sources())
    assert not {str(folder): n for folder, n in counts.items() if n > MAX_FILES}


def test_a_public_class_name_is_unique():
    names = Counter(
        node.name
        for path in sources()
        for node in parsed(path)[1].body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


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
        ("imports", "settings/types.py", "from training import loop"),
        ("imports", "errors.py", "import formatting"),
        ("lengths", "ops/x.py", "x = 1\n" * 400),
        ("lengths", "ops/x.py", LONG),
        ("identifiers", "ops/x.py", "found = 1"),
        ("identifiers", "ops/x.py", "def f(own): ..."),
        ("identifiers", "ops/x.py", "def kept(): ..."),
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
        ("digits", "ops/x.py", "text.isdigit()"),
        ("openness", "ops/x.py", "getattr(x, 'y', None)"),
        ("openness", "ops/x.py", "def f(**rest):\n    return g(1, **rest)"),
        ("environment", "ops/x.py", "import os\nos.environ['A']"),
        ("environment", "ops/x.py", "import os\nos.environ.get('A')"),
        ("environment", "ops/x.py", "import os\nos.getenv('A')"),
        ("environment", "ops/x.py", "from os import environ"),
    ],
)
def test_rule_refuses(rule, path, text):
    assert complaints(RULES[rule], PurePosixPath(path), text, ast.parse(text))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (
            "imports",
            "training/x.py",
            "import arch, settings, errors, jax\nfrom training import mesh",
        ),
        ("imports", "train.py", "from eval import harness"),
        ("imports", "benchmarks/x.py", "from hub import llama"),
        ("lengths", "ops/x.py", "x = 1\n" * 399),
        ("lengths", "ops/x.py", 'def f():\n    """' + "line\n" * 60 + '"""\n'),
        ("identifiers", "ops/x.py", "x = y.found"),
        ("names", "ops/__init__.py", ""),
        ("safety", "ops/x.py", "ast.literal_eval(x)\nmodel.eval()\nnp.load(x, allow_pickle=False)"),
        ("openness", "ops/x.py", "f(**settings)\ngetattr(x, 'y')"),
        ("environment", "ops/x.py", "import os\nos.environ['XLA_FLAGS'] = 'x'"),
    ],
)
def test_rule_admits(rule, path, text):
    assert not complaints(RULES[rule], PurePosixPath(path), text, ast.parse(text))
