"""Names of captured operations and of the modules that ran them."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx


def op_name(node: fx.Node) -> str:
    """Name of an operation without namespace and overload, such as `layer_norm`."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return schema.name.removeprefix("aten::")
    return getattr(node.target, "operation", str(node.target))


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that ran the node, without the wrapper's own prefix."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    path = paths[-1] if paths else ""
    return path.removeprefix("model.") if path != "model" else ""


def module_classes(node: fx.Node) -> Iterator[str]:
    """Class names of the modules around the node, outermost first."""
    for entry in (node.meta.get("nn_module_stack") or {}).values():
        kind = entry[1]
        yield kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def class_at(node: fx.Node, path: str) -> str:
    """Class name, without its module, of the module at a path around a node; empty if none."""
    stack = node.meta.get("nn_module_stack") or {}
    for (own, _), kind in zip(stack.values(), module_classes(node), strict=True):
        if own.removeprefix("model.") == path:
            return kind.rsplit(".", 1)[-1]
    return ""


def where(node: fx.Node) -> str:
    """Phrase that names an operation's place for messages."""
    path = module_path(node)
    return f"in module {path!r}" if path else "at the top of the model"


def chain_path(chain: list[fx.Node]) -> str:
    """Module that made a component: from where its path ends, outwards, but not the whole block."""
    path = module_path(chain[-1])
    for node in reversed(chain):
        wider = common_path([path, module_path(node)])
        if not wider or wider.rsplit(".", 1)[-1].isdigit():
            break
        path = wider
    return path


def common_path(paths: list[str]) -> str:
    """Longest common dotted prefix.

    >>> common_path(["blocks.3.mlp.act", "blocks.3.mlp.fc2"])
    'blocks.3.mlp'
    """
    parts = [path.split(".") for path in paths if path]
    if not parts:
        return ""
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
