"""A program of torch.export as a JSON record of ATen operators, and the module that runs such a record.

A node is [name, operator, args, kwargs]. In args, {"value": name} is an earlier node, the input or a tensor of the file,
{"torch": "float32"} a constant of torch; all else stands for itself. A record is data: operators are looked up among ATen's
functions of tensors and a few on numbers, and nothing else of it is ever called.
"""

import operator
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from trainers.errors import CheckpointError, ExportError

Record = dict[str, Any]

# ATen's functions without a tensor among their arguments that make constants; `from_file`, for one, must not be reached
_FACTORIES = {"arange", "empty", "full", "linspace", "ones", "scalar_tensor", "zeros"}
_NUMBERS = {"add", "floordiv", "getitem", "mod", "mul", "neg", "pow", "sub", "truediv"}
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)
_CHECKS = re.compile(r"aten\.(_assert|sym_constrain)")  # torch.export's own, of what has been checked already


def record_program(program: ExportedProgram) -> tuple[Record, dict[str, Tensor]]:
    """Return the record of a program with one input and one output, and the tensors it takes by name, each contiguous.

    Raises ExportError where it holds something else than ATen operators.
    """
    stored = program.state_dict | program.constants
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    parameters, given = [], ""
    for spec in program.graph_signature.input_specs:
        placeholder = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            given = placeholder
            continue
        target = str(spec.target)
        # nodes have no dots in their names
        name = names[placeholder] = target if "." in target else f"constant.{target}"
        tensors[name] = stored[target].detach().contiguous()
        if spec.kind is InputKind.PARAMETER:
            parameters.append(name)
    *calls, last = _needed(program)
    nodes = [[node.name, _name(node), *(_encoded(part, names) for part in (node.args, node.kwargs))] for node in calls]
    (output,) = last.all_input_nodes
    record = {"input": given, "parameters": parameters, "nodes": nodes, "output": names.get(output.name, output.name)}
    taken = {names[node.name] for call in calls for node in call.all_input_nodes if node.name in names}
    return record, {name: tensor for name, tensor in tensors.items() if name in taken}


def _needed(program: ExportedProgram) -> list[Node]:
    """All nodes but inputs, torch.export's checks, and arithmetic that only those took; the output is the last."""
    kept: list[Node] = []
    needed: set[Node] = set()
    for node in reversed(program.graph.nodes):
        target = str(node.target)
        on_numbers = not isinstance(node.target, torch._ops.OpOverload) or "sym_" in target
        idle = node.op == "call_function" and on_numbers and node not in needed
        if node.op != "placeholder" and not _CHECKS.match(target) and not idle:
            kept.append(node)
            needed.update(node.all_input_nodes)
    return kept[::-1]


def _name(node: Node) -> str:
    target: Any = node.target
    name = f"operator.{target.__name__}" if getattr(target, "__module__", "") == "_operator" else str(target)
    try:
        find_operator(name)
    except CheckpointError as error:
        raise ExportError(
            f"a safetensors export must consist of ATen operators alone, but the network calls {name}; use pt2"
        ) from error
    return name


def _encoded(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, Node):
        return {"value": names.get(value.name, value.name)}
    if isinstance(value, list | tuple):
        return [_encoded(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _encoded(item, names) for key, item in value.items()}
    if isinstance(value, _CONSTANTS):
        return {"torch": str(value).removeprefix("torch.")}
    return str(value) if isinstance(value, torch.device) else value


def find_operator(name: str) -> Any:
    """Return the function that a record may call by this name; raises CheckpointError for any other."""
    space, _, rest = name.partition(".")
    if space == "operator" and rest in _NUMBERS:
        return getattr(operator, rest)
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if space == "aten" else None
    if isinstance(found, torch._ops.OpOverload):
        takes_tensors = any("Tensor" in str(argument.type) for argument in found._schema.arguments)
        if takes_tensors or packet in _FACTORIES:
            return found
    raise CheckpointError(f"a network's record must call ATen's functions of tensors alone, but it calls {name!r}")


@dataclass(frozen=True)
class _Value:
    """A node's argument that is another node, the input or a tensor of the file."""

    name: str


class RecordedNetwork(nn.Module):
    """The network that a record describes, with `tensors` as its state, under the names they have there.

    Raises CheckpointError for a record that calls or names what it must not, KeyError, TypeError or ValueError for one that
    is not complete.
    """

    def __init__(self, record: Record, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._given, self._output = record["input"], record["output"]
        known = {*tensors, self._given}
        self._nodes = []
        for name, target, args, kwargs in record["nodes"]:
            self._nodes.append(
                (name, find_operator(target), _resolved(args, known), _resolved({"": kwargs}, known)[""])
            )
            known.add(name)
        _resolved({"value": self._output}, known)
        for name, tensor in tensors.items():
            self._register(name, nn.Parameter(tensor) if name in record["parameters"] else tensor)

    def _register(self, name: str, tensor: Tensor) -> None:
        *path, last = name.split(".")
        module: nn.Module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(last, tensor)
        else:
            module.register_buffer(last, tensor)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        values: dict[str, Any] = {**dict(self.named_parameters()), **dict(self.named_buffers()), self._given: images}
        for name, function, args, kwargs in self._nodes:
            given = {key: _filled(value, values) for key, value in kwargs.items()}
            if "device" in given:
                given["device"] = images.device  # of a constant: the one it was exported on says nothing
            values[name] = function(*_filled(args, values), **given)
        out: Tensor = values[self._output]
        return out


def _resolved(value: Any, known: set[str]) -> Any:
    """What a record's JSON stands for, with `_Value` for each value; raises CheckpointError for what is not known."""
    if isinstance(value, list):
        return [_resolved(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"value"}:
        if value["value"] not in known:
            raise CheckpointError(f"a network's record must name values that are there, but names {value['value']!r}")
        return _Value(value["value"])
    if value.keys() == {"torch"}:
        constant = getattr(torch, value["torch"], None)
        if not isinstance(constant, _CONSTANTS):
            raise CheckpointError(f"a network's record must name constants of torch, but names {value['torch']!r}")
        return constant
    return {key: _resolved(item, known) for key, item in value.items()}


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, _Value):
        return values[value.name]
    return [_filled(item, values) for item in value] if isinstance(value, list) else value
