"""Programs that an export describes, looked through before torch or ONNX Runtime read them: both do more than compute.

`torch.export.load` evaluates symbolic sizes and guards as Python, and calls any operator of torch by name; ONNX Runtime
reads weights from files that a model names. An export of ours needs none of that.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from trainers.errors import CheckpointError
from trainers.export.graph_record import find_operator

_ATEN, _NUMBERS = "torch.ops.aten.", "_operator."
_SYMBOL = re.compile(r"Symbol\('[a-z]{1,2}\d+'(?:, [a-z_]+=(?:True|False))*\)")
_FUNCTIONS = "Integer|Float|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
_SIZE = re.compile(rf"(?:\s|[a-z]\d+|\d+(?:\.\d+)?|\b(?:{_FUNCTIONS})\b|[-+*/(),<>=])*")
_LONGEST_SIZE = 1000


def require_harmless_program(content: bytes) -> None:
    """Raise CheckpointError unless the JSON of a torch.export program calls ATen's functions of tensors and arithmetic
    alone, has sizes that are arithmetic alone, and no guards.
    """
    program = json.loads(content)
    if program.get("guards_code"):
        raise CheckpointError("an export must hold no guards, which would be run as Python, but this one does")
    for key, value in _entries(program):
        if key == "target" and isinstance(value, str):
            _require_operator(value)
        elif key == "expr_str" and not _is_size(value):
            raise CheckpointError(f"an export's sizes must be arithmetic alone, but one is {value!r:.100}")
        elif key == "__enum__" or (isinstance(value, str) and "__enum__" in value):
            raise CheckpointError("an export must name no classes of Python, but this one does")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each.items()
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _require_operator(target: str) -> None:
    if target.startswith(_ATEN):
        find_operator(target.removeprefix("torch.ops."))
    elif target.startswith(_NUMBERS):
        find_operator(target.removeprefix("_"))
    else:
        raise CheckpointError(f"an export must call ATen's functions of tensors alone, but it calls {target!r:.100}")


def _is_size(text: Any) -> bool:
    if not isinstance(text, str) or len(text) > _LONGEST_SIZE:
        return False
    bare = _SYMBOL.sub("1", text)
    return "**" not in bare and _SIZE.fullmatch(bare) is not None


def require_own_weights(content: bytes) -> None:
    """Raise CheckpointError for an ONNX model whose weights lie in other files; ImportError without the package onnx."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    model = onnx.load_model_from_string(content)
    graphs = [model.graph, *(function for function in model.functions)]
    while graphs:
        graph = graphs.pop()
        tensors = [*getattr(graph, "initializer", ())]
        for node in graph.node:
            tensors += [tensor for attribute in node.attribute for tensor in (attribute.t, *attribute.tensors)]
            graphs += [inner for attribute in node.attribute for inner in (attribute.g, *attribute.graphs)]
        tensors += [
            part for sparse in getattr(graph, "sparse_initializer", ()) for part in (sparse.values, sparse.indices)
        ]
        if any(uses_external_data(tensor) or tensor.external_data for tensor in tensors):
            raise CheckpointError("an export must hold its own weights, but this one names other files")
