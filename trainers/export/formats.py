"""The three files, as bytes: a program of torch.export, an ONNX model, or safetensors with a record of the network.

Each format is a function that makes all but the metadata once and returns `Packed`, which takes them in: what is measured
on a file's content is written into its metadata afterwards.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from trainers.errors import ExportError
from trainers.export.graph_record import record_program
from trainers.export.integrity import UNSEALED, seal
from trainers.export.options import Format
from trainers.export.program import num_nodes

METADATA = "rankfront"  # the key of the metadata, or with .json the file in the archive
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
_PROTOBUF_LIMIT = 2**31 - 1

Metadata = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """A file's content but for its metadata: `content` adds them; `nodes` is how many operators the network calls."""

    content: Callable[[Metadata], bytes]
    nodes: int


def pack_pt2(program: ExportedProgram) -> Packed:
    """A zip archive that `torch.export.load` reads; none of its parts is pickled."""

    def content(metadata: Metadata) -> bytes:
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={f"{METADATA}.json": json.dumps(metadata)})
        return file.getvalue()

    return Packed(content, num_nodes(program))


def pack_safetensors(program: ExportedProgram) -> Packed:
    """The weights, and in the header the network as a record of operators (`graph_record`)."""
    from safetensors.torch import save

    record, tensors = record_program(program)
    text = json.dumps(record)

    def content(metadata: Metadata) -> bytes:
        return seal(save(tensors, {METADATA: _sealable(metadata), "graph": text}))

    return Packed(content, len(record["nodes"]))


def pack_onnx(program: ExportedProgram, model: Any = None) -> Packed:
    """An ONNX model with the input `images` and the output `logits`; `model`: one that was made of the program before."""
    model = onnx_model(program) if model is None else model

    def content(metadata: Metadata) -> bytes:
        del model.metadata_props[:]
        model.metadata_props.add(key=METADATA, value=_sealable(metadata))
        if model.ByteSize() > _PROTOBUF_LIMIT:
            raise ExportError(f"an ONNX file must be below 2 GiB, but this one has {model.ByteSize():,} bytes; use pt2")
        return seal(model.SerializeToString())

    return Packed(content, len(model.graph.node))


def _sealable(metadata: Metadata) -> str:
    """With a place for the file's digest; a zip archive has checksums of its own."""
    return json.dumps({**metadata, "digest": UNSEALED})


def onnx_model(program: ExportedProgram) -> Any:
    """Return the program as an ONNX ModelProto with an open batch, without names and paths of this machine's code."""
    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT], external_data=False
        )
    assert made is not None
    model = made.model_proto
    model.producer_name, model.doc_string = "rankfront", ""
    graph = model.graph
    del graph.value_info[:]  # shapes in between name the batch otherwise; whoever needs them infers them
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


PACKERS: dict[Format, Callable[[ExportedProgram], Packed]] = {
    "pt2": pack_pt2,
    "onnx": pack_onnx,
    "safetensors": pack_safetensors,
}
