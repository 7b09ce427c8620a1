"""The meaning of each setting: the comment beside its field, which `--help` and the docs print."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Sequence


@functools.cache
def field_descriptions(cls: type) -> dict[str, str]:
    """Returns the comment of every field of a settings class, by field.

    A comment stands on the line of its field or on the lines above it. A field without a comment,
    such as a section, has the description "".
    """
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    (tree,) = ast.parse("\n".join(lines)).body
    descriptions = {}
    for node in tree.body if isinstance(tree, ast.ClassDef) else ():
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if ast.unparse(node.annotation).startswith("ClassVar"):
            continue
        name = node.target.id
        rest_of_line = lines[(node.end_lineno or 1) - 1][node.end_col_offset :]
        beside = rest_of_line.partition("#")[2].strip()
        descriptions[name] = beside or _comment_above(lines, node.lineno - 2)
    return descriptions


def _comment_above(lines: Sequence[str], index: int) -> str:
    comments: list[str] = []
    while index >= 0 and lines[index].strip().startswith("#"):
        comments.insert(0, lines[index].strip(" #"))
        index -= 1
    return " ".join(comments)
