"""The config that mmengine's Runner stores in a checkpoint, read as data.

It is Python source, and mmengine's own way to read it is to run it. A checkpoint comes from anywhere, so
here only what such a text consists of is understood: names set to literals and ``dict(...)``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

_NAMES = {"inf": float("inf"), "nan": float("nan")}  # as repr() writes them


def read_stored_config(content: Mapping[str, Any], *, checkpoint: str) -> Config:
    """Read the config out of a checkpoint's ``meta``, without running any of it.

    Args:
        content: of the checkpoint.
        checkpoint: its name, for messages.

    Raises:
        ValueError: the checkpoint holds no config, one that is not plain data, or one that would have
            its model built by something else than a registered class.
    """
    text = (content.get("meta") or {}).get("cfg")
    if not isinstance(text, str):
        raise ValueError(
            f"{checkpoint} does not hold the config it was trained with: name it with --config"
        )
    try:
        values = _assignments(text)
        _refuse_dotted_types(values.get("model"))
    except (SyntaxError, ValueError, TypeError) as e:
        raise ValueError(
            f"the config inside of {checkpoint} is not plain data and is not run ({e}): name the file it "
            "was trained with, --config"
        ) from e
    return Config(values)


def _assignments(text: str) -> dict[str, Any]:
    values = {}
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise ValueError(f"line {statement.lineno} is no assignment to a name")
        values[statement.targets[0].id] = _value(statement.value)
    return values


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key else _refuse(node) for key in node.keys]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        make: Any = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return make(_value(item) for item in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        named = {word.arg or _refuse(node): _value(word.value) for word in node.keywords}
        return dict(*map(_value, node.args), **named)
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    return node.value if isinstance(node, ast.Constant) else _refuse(node)


def _refuse(node: ast.expr) -> Any:
    raise ValueError(f"line {node.lineno}: {ast.unparse(node)[:80]}")


def _refuse_dotted_types(cfg: Any) -> None:
    """mmengine imports and calls whatever a type with a dot names, such as os.system."""
    if isinstance(cfg, dict):
        kind = cfg.get("type")
        if kind is not None and not (isinstance(kind, str) and kind.isidentifier()):
            raise ValueError(f"type={kind!r} is not the name of a registered class")
    branches = (
        cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, list | tuple) else ()
    )
    for branch in branches:
        _refuse_dotted_types(branch)
