"""Functions and classes in the text of a module, read without importing it."""

from __future__ import annotations

import ast
from typing import Any


def find(tree: ast.AST, symbol: str) -> Any:
    """The node that defines a dotted name at the top of a module, or an attribute in a class; None if there is none."""
    node: Any = tree
    for name in symbol.split("."):
        node = next((child for child in getattr(node, "body", ()) if _defines(child, name)), None)
    return node


def text_of(text: str, symbol: str) -> str | None:
    """Source text of a definition, decorators included, as `inspect.getsource` gives it; None if there is none."""
    node = find(ast.parse(text), symbol)
    if node is None:
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
    return "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])


def parameters(text: str, symbol: str) -> tuple[str, ...]:
    """Names and defaults of a function's parameters, in order, as `state.parameters` gives them; () if it is none."""
    node = find(ast.parse(text), symbol)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ()
    plain = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = list(zip(plain, defaults, strict=True))
    if node.args.vararg:
        pairs.append((node.args.vararg, None))
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    if node.args.kwarg:
        pairs.append((node.args.kwarg, None))
    return tuple(arg.arg if default is None else f"{arg.arg}={ast.unparse(default)}" for arg, default in pairs)


def places(text: str, symbol: str) -> list[str]:
    """Dotted names in a module whose last part is that of `symbol`: a function, a class, or a method of any class."""
    name = symbol.rpartition(".")[2]
    if name not in text:
        return []
    top = ast.parse(text).body
    owners = [node for node in top if isinstance(node, ast.ClassDef)]
    methods = [f"{owner.name}.{name}" for owner in owners if any(_defines(node, name) for node in owner.body)]
    return [name] * any(_defines(node, name) for node in top) + methods


def _defines(node: ast.AST, name: str) -> bool:
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return name in (getattr(node, "name", None), *(getattr(target, "id", None) for target in targets))
