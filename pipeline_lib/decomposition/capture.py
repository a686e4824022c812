"""Capture: the model's own graph, from pixels to the pooled representation.

`torch.export` records every operation of the unmodified library code with a symbolic batch
dimension. What is captured is kept as recorded, except that operations that write in place become
their functional twins. Nothing here knows an architecture; which term goes where is decided in
`pipeline_lib.decomposition.plan`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from pipeline_lib.decomposition.narrow import narrow
from pipeline_lib.decomposition.operations import op_name, where
from pipeline_lib.decomposition.windows import lay_out_windows
from pipeline_lib.errors import DecompositionRefused, ModelError


class Representation(nn.Module):
    """The pooled representation before any classifier, as the library itself computes it.

    timm: `forward_head(forward_features(x), pre_logits=True)`; open_clip: the projected image
    embedding, unnormalised; any other module: its output, which must be `[n, d]`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
            self.kind = "pre_logits" if _has_head(model) else "output"
        elif hasattr(model, "visual") and hasattr(model, "encode_image"):
            self.kind = "image_embedding"
        else:
            self.kind = "output"

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "pre_logits":
            features = self.model.forward_features(images)
            return self.model.forward_head(features, pre_logits=True)
        tower = self.model.visual if self.kind == "image_embedding" else self.model
        output = tower(images)
        return output[0] if isinstance(output, (tuple, list)) else output


def _has_head(model: nn.Module) -> bool:
    """Whether a timm model has a head, or is an encoder that has none or refuses to have one."""
    if "pre_logits" not in inspect.signature(model.forward_head).parameters:  # type: ignore[arg-type]
        return False
    try:
        model.forward_head(torch.empty(0), pre_logits=True)  # type: ignore[operator]
    except NotImplementedError:
        return False
    except Exception:
        return True  # it has one, which does not read an empty tensor
    return True


@dataclass
class Capture:
    """A recorded graph and how to fetch the live weights it reads.

    Attributes
    ----------
    graph
        Functional graph; placeholders are the weights, then the images.
    state
        Placeholder name -> name of the parameter or buffer in the module, or a constant tensor.
    output
        Node of the representation `z` [n, d].
    parameters
        Placeholders that are parameters.
    images
        Placeholder of the images.
    """

    module: nn.Module
    graph: fx.Graph
    images: fx.Node
    output: fx.Node
    state: dict[str, str | Tensor] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    def live_state(self) -> dict[str, Tensor]:
        """Current value of every weight the graph reads, by placeholder name.

        Every path is followed anew, since a part of the module may have been replaced.
        """
        found: dict[str, Tensor] = {}
        for name, source in self.state.items():
            found[name] = _fetch(self.module, source) if isinstance(source, str) else source
        return found


def _fetch(module: nn.Module, path: str) -> Tensor:
    *owners, name = path.split(".")
    for owner in owners:
        module = module._modules[owner]  # type: ignore[assignment]
    held = module._parameters if name in module._parameters else module._buffers
    return held[name] if name in held else getattr(module, name)  # type: ignore[return-value]


def capture(module: nn.Module, images: Tensor) -> Capture:
    """Record the graph of `module` for images of the given height, width, dtype and device.

    Parameters
    ----------
    module
        Module in eval mode that maps images `[n, 3, h, w]` to a representation `[n, d]`.
    images
        Any batch; only its trailing shape, dtype and device matter.

    Raises
    ------
    ModelError
        The module is in train mode.
    DecompositionRefused
        The module cannot be exported with a free batch dimension; the reason is quoted.
    """
    if module.training:
        raise ModelError(
            "the model is in train mode; its dropout and batch statistics are not those of "
            "inference. Call model.eval() first."
        )
    example = torch.zeros((1, 1, 1, 1), dtype=images.dtype, device=images.device).expand(
        7, *images.shape[1:]
    )
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DecompositionRefused(
            f"the graph of {type(module).__name__} cannot be captured for images of shape "
            f"{tuple(images.shape[1:])}: {type(error).__name__}: {reason}"
        ) from error
    signature = program.graph_signature
    state: dict[str, str | Tensor] = {}
    state.update(signature.inputs_to_parameters)
    state.update(signature.inputs_to_buffers)
    for name, path in signature.inputs_to_lifted_tensor_constants.items():
        state[name] = program.constants[path]
    graph = program.graph_module.graph
    _inline(program.graph_module)
    _drop_effects(graph)
    _make_functional(graph)
    lay_out_windows(graph)
    user = [node for node in graph.nodes if node.name in signature.user_inputs]
    output = _output_node(graph)
    graph.eliminate_dead_code()
    narrow(graph)
    _lay_out(graph)
    kept = {node.name for node in graph.nodes if node.op == "placeholder"}
    state = {name: where for name, where in state.items() if name in kept}
    parameters = tuple(name for name in signature.inputs_to_parameters if name in kept)
    return Capture(module, graph, user[0], output, state, parameters)


def _output_node(graph: fx.Graph) -> fx.Node:
    result = next(node for node in graph.nodes if node.op == "output")
    returned = result.args[0]
    node = returned[-1] if isinstance(returned, (tuple, list)) else returned
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if value is None or value.dim() != 2:
        shape = tuple(value.shape) if value is not None else None
        raise DecompositionRefused(
            f"the representation must have the shape [n, d]; the module returns {shape}. Wrap the "
            "model in a module that returns its pooled representation before the classifier."
        )
    return node


def _inline(module: fx.GraphModule) -> None:
    """Put the graphs of wrapped regions (autocast or gradients switched off) in their place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or not str(node.target).startswith("wrap_with"):
            continue
        place = next(
            i for i, arg in enumerate(node.args)
            if isinstance(arg, fx.Node) and arg.op == "get_attr"
        )  # fmt: skip
        inner = getattr(module, str(node.args[place].target)).graph  # type: ignore[union-attr]
        inputs = [other for other in inner.nodes if other.op == "placeholder"]
        copies = dict(zip(inputs, node.args[place + 1 :], strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(inner, copies)  # type: ignore[arg-type]
        results = results if isinstance(results, (tuple, list)) else (results,)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
        graph.erase_node(node)


def _lay_out(graph: fx.Graph) -> None:
    """Copy what linear layers read into the order of its axes, where it lies otherwise.

    Torch multiplies a transposed batch of tokens row by row, at half the speed of one product.
    """
    for node in list(graph.nodes):
        value = node.args[0].meta.get("val") if op_name(node) == "linear" else None  # type: ignore[union-attr]
        if isinstance(value, Tensor) and value.dim() > 2 and not value.is_contiguous():
            with graph.inserting_before(node):
                copy = graph.call_function(torch.ops.aten.contiguous.default, (node.args[0],))
            copy.meta = {**node.meta, "val": value.contiguous()}
            node.replace_input_with(node.args[0], copy)  # type: ignore[arg-type]


_EFFECTS = ("_assert", "sym_constrain", "_guards")


def _drop_effects(graph: fx.Graph) -> None:
    """Remove run-time assertions, which only repeat what the plan knows of the shapes."""
    for node in reversed(list(graph.nodes)):
        name = str(node.target)
        unused = node.op in ("call_function", "call_module") and not node.users
        if unused and any(word in name for word in _EFFECTS):
            graph.erase_node(node)


def _functional_twin(node: fx.Node) -> Callable[..., object] | None:
    name = op_name(node)
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    overload = getattr(node.target, "_overloadname", "default")
    return getattr(packet, overload, None) if packet is not None else None


def _make_functional(graph: fx.Graph) -> None:
    """Replace operations that write in place by their twins that return a new tensor.

    A write into a part (`x[:, 0] = y`) becomes a new whole with that part replaced.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or not op_name(node).endswith("_"):
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        twin = _functional_twin(node)
        written = node.args[0]
        if twin is None or not isinstance(written, fx.Node):
            raise DecompositionRefused(f"in-place operation {node.target} {where(node)}")
        if op_name(node) == "copy_":
            node.target, node.args = torch.ops.aten.expand_as.default, (node.args[1], written)
        else:
            node.target = twin
        part: fx.Node = node
        while op_name(written) in ("select", "slice", "getitem", "index", "narrow"):
            _replace_later(graph, written, part)
            part = _with_part(graph, written, part)
            written = written.args[0]
        _replace_later(graph, written, part)


def _with_part(graph: fx.Graph, view: fx.Node, part: fx.Node) -> fx.Node:
    """The tensor that a view was taken of, with the view's part replaced."""
    scatter = {
        "slice": torch.ops.aten.slice_scatter.default,
        "select": torch.ops.aten.select_scatter.default,
    }.get(op_name(view))
    whole = view.args[0]
    if scatter is None or not isinstance(whole, fx.Node):
        raise DecompositionRefused(
            f"an in-place operation writes through {op_name(view)} {where(part)}"
        )
    with graph.inserting_after(part):
        new = graph.call_function(scatter, (whole, part, *view.args[1:]), view.kwargs)
    new.meta = {**part.meta, "val": whole.meta["val"]}
    return new


def _replace_later(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    """Let everything behind `new` read it in place of `old`."""
    later = _after(graph, new)
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user in later)


def _after(graph: fx.Graph, node: fx.Node) -> set[fx.Node]:
    seen = False
    found: set[fx.Node] = set()
    for other in graph.nodes:
        if seen:
            found.add(other)
        seen = seen or other is node
    return found
