"""The network as a program of torch.export: the one form that all files are written from."""

import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from trainers.errors import ExportError


def trace(module: nn.Module, sample_shape: tuple[int, ...], dtype: torch.dtype) -> ExportedProgram:
    """Return `module` as a program for any number of inputs of `sample_shape` and `dtype`, without paths of this machine.

    Raises ExportError where torch.export cannot follow it, or only for one number of inputs.
    """
    example = torch.zeros((2, *sample_shape), dtype=dtype)  # a batch of one is taken for a constant
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch.export about its own insides
            program = export(module, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # whatever torch.export raises, the reason is the network
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(
            f"torch.export must be able to follow the network for any number of images, but: {reason}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None  # they would be pickled into the file
    return program


def num_nodes(program: ExportedProgram) -> int:
    """Return how many operators the program calls."""
    return sum(node.op == "call_function" for node in program.graph.nodes)
