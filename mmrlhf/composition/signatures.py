"""What a configured object can be told: parameters, defaults and explanations, read from its source text.

`_target_: mmrlhf.methods.optim.OptimSettings` names a class; its parameters are the fields or arguments that its source
declares, each with its default and its sentence of the docstring. Nothing is imported for that, so `--help` and
`--cfg job` know every setting without loading torch.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "mmrlhf"
# `8 << 20` is how sizes are written
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}
# what a stage function is given by the runner
GIVEN_BY_RUNNER = frozenset({"out", "runtime"})


class Unreadable(ValueError):
    """A default that cannot be read without running code."""


@dataclass(frozen=True)
class Parameter:
    """One argument of a configured object.

    Args:
        name: its name.
        annotation: its type as written; empty where none is.
        expression: its default as written, in `module`; None where it must be given.
        module: dotted name of the module that declares it.
        explanation: what the docstring says of it; empty where it says nothing.
    """

    name: str
    annotation: str
    expression: ast.expr | None
    module: str
    explanation: str

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.expression is None

    def default(self) -> Any:
        """The default as plain values, objects as mappings with `_target_`; raises Unreadable."""
        assert self.expression is not None
        return _evaluate(self.expression, self.module)


@cache
def parameters(target: str) -> Mapping[str, Parameter] | None:
    """Parameters by name of what a dotted name of this package names; None for anything else."""
    if not target.startswith(f"{PACKAGE}."):
        return None
    found = _find(*target.rpartition(".")[::2])
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.ClassDef):
        return _class_parameters(module, node)
    given = GIVEN_BY_RUNNER if module.startswith(f"{PACKAGE}.stages.") else frozenset()
    return {item.name: item for item in _arguments(module, node, _explanations(node)) if item.name not in given}


@cache
def _tree(module: str) -> ast.Module | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _find(module: str, name: str) -> tuple[str, Any] | None:
    """(module, node) of a class, function or constant, through `from ... import`; None for what is not ours."""
    tree = _tree(module) if module.startswith(PACKAGE) else None
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return module, node.value
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return module, node.value
    return None


def _class_parameters(module: str, node: ast.ClassDef) -> dict[str, Parameter]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            texts = {**_explanations(node), **_explanations(item)}
            return {argument.name: argument for argument in _arguments(module, item, texts) if argument.name != "self"}
    found: dict[str, Parameter] = {}
    for base in reversed(node.bases):
        above = _find(module, base.id) if isinstance(base, ast.Name) else None
        if above is not None and isinstance(above[1], ast.ClassDef):
            found |= _class_parameters(*above)
    texts = _explanations(node)
    # a docstring may say more of an inherited field
    found = {
        name: Parameter(name, item.annotation, item.expression, item.module, texts.get(name, item.explanation))
        for name, item in found.items()
    }
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        for item in _fields(module, node, texts, found):
            found[item.name] = item
    return found


def _fields(
    module: str, node: ast.ClassDef, texts: Mapping[str, str], inherited: Mapping[str, Parameter]
) -> Iterator[Parameter]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        name, annotation = item.target.id, ast.unparse(item.annotation)
        if annotation.startswith("ClassVar") or _is_derived(item.value):
            continue
        explanation = texts.get(name) or (inherited[name].explanation if name in inherited else "")
        yield Parameter(name, annotation, item.value, module, explanation)


def _is_derived(value: ast.expr | None) -> bool:
    """Whether a field is no argument: `field(init=False)`."""
    return isinstance(value, ast.Call) and any(
        word.arg == "init" and isinstance(word.value, ast.Constant) and not word.value.value for word in value.keywords
    )


def _arguments(module: str, node: ast.FunctionDef, texts: Mapping[str, str]) -> Iterator[Parameter]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    for argument, default in pairs:
        annotation = ast.unparse(argument.annotation) if argument.annotation is not None else ""
        yield Parameter(argument.arg, annotation, default, module, texts.get(argument.arg, ""))


def _evaluate(node: ast.expr, module: str) -> Any:
    if isinstance(node, ast.Tuple | ast.List):
        return [_evaluate(item, module) for item in node.elts]
    if isinstance(node, ast.Name):
        found = _find(module, node.id)
        if found is not None and isinstance(found[1], ast.expr):
            return _evaluate(found[1], found[0])
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_evaluate(node.left, module), _evaluate(node.right, module))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _evaluate_call(node, node.func.id, module)
    else:
        try:
            return ast.literal_eval(node)
        except ValueError:
            pass
    raise Unreadable(f"{module}: `{ast.unparse(node)}` cannot be read without running code")


def _evaluate_call(node: ast.Call, name: str, module: str) -> Any:
    words = {word.arg: word.value for word in node.keywords}
    if name == "field" and "default" in words:
        return _evaluate(words["default"], module)
    factory = words.get("default_factory") if name == "field" else node.func
    if isinstance(factory, ast.Name) and not (name != "field" and (node.args or node.keywords)):
        if factory.id in ("dict", "list", "tuple"):
            return {} if factory.id == "dict" else []
        found = _find(module, factory.id)
        if found is not None and isinstance(found[1], ast.ClassDef):
            return described(f"{found[0]}.{found[1].name}")
    raise Unreadable(f"{module}: `{ast.unparse(node)}` cannot be read without running code")


def described(target: str) -> dict[str, Any]:
    """An object made with nothing but its defaults, as the config describes it."""
    known = parameters(target)
    assert known is not None
    return {"_target_": target, **{name: item.default() for name, item in known.items() if not item.is_required}}


def _explanations(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """Read the section `Args:` of a docstring: name -> text; `a, b: text` speaks of both."""
    lines = inspect.cleandoc(ast.get_docstring(node) or "").splitlines()
    try:
        start = lines.index("Args:") + 1
    except ValueError:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines[start:]:
        if line and not line.startswith(" "):
            break
        match = re.match(r"    ([\w*]+(?:, [\w*]+)*): (.*)", line)
        if match is not None:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
