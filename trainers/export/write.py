"""The whole export: fold, trace, pack, compare with the trained network, write."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import torch

from trainers.atomic import atomic_file
from trainers.batches import normalize
from trainers.config import as_record
from trainers.cost import measure_cost
from trainers.data import ImageData, spread_rows
from trainers.errors import ExportError
from trainers.export.folding import Folded, fold_batch_norm
from trainers.export.formats import PACKERS, Metadata, Packed, onnx_model, pack_onnx
from trainers.export.interface import Interface
from trainers.export.load import EXPORT, VERSION, read_export
from trainers.export.measure import Measured, measure
from trainers.export.options import ExportOptions, require_packages
from trainers.export.program import trace
from trainers.export.quantization import quantize
from trainers.recipe import dense_cost
from trainers.saved_model import SavedModel

LICENCE = "unknown: rankfront is told nothing about the licence of the training data; find out before you pass this on"
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


@dataclass(frozen=True)
class ExportReport:
    """What was written: where, how many operators and bytes, what became of BatchNorm, what was measured, the metadata."""

    path: Path
    nodes: int
    size_bytes: int
    folded: int
    left: int
    measured: Measured
    metadata: Metadata


def export_model(
    saved: SavedModel, data: ImageData, output: Path, options: ExportOptions, facts: Mapping[str, Any] | None = None
) -> ExportReport:
    """Write the deployed network of a model file to `output`, atomically, after a comparison on images of `data`.

    `data` is what it was trained on, on the CPU; `facts` are added to the metadata. Raises ExportError where the network is
    not deployed, torch.export cannot follow it, or the export does not give what the network gives; nothing is written then.
    """
    require_packages(options.format)
    _require_deployed(saved, data)
    folded = fold_batch_norm(saved.model, saved.spec.sample_shape)
    packed = _packed(folded, saved, data, options)
    described = {
        **_description(saved, data, options),
        **(facts or {}),
        "nodes": packed.nodes,
        "batch_norm": {"folded": folded.folded, "left": folded.left},
    }
    measured = measure(read_export(packed.content(described), options.format), saved.model, data, options)
    described["measured"] = measured.record()
    content = packed.content(described)
    read_export(content, options.format)  # as it is written, metadata and all
    with atomic_file(output) as file:
        file.write(content)
    output.chmod(0o644)
    return ExportReport(output, packed.nodes, len(content), len(folded.folded), len(folded.left), measured, described)


def _packed(folded: Folded, saved: SavedModel, data: ImageData, options: ExportOptions) -> Packed:
    network = copy.deepcopy(folded.model).to(_TYPES[options.weights]).to(memory_format=torch.contiguous_format)
    pixels = options.input == "pixels"
    module = Interface(network.requires_grad_(False), data if pixels else None)
    program = trace(module, saved.spec.sample_shape, torch.uint8 if pixels else torch.float32)
    if options.weights != "int8":
        return PACKERS[options.format](program)
    images = data.images[spread_rows(data.train_rows, options.num_calibration)]
    inputs = images if pixels else normalize(images, data, torch.float32)
    return pack_onnx(program, quantize(onnx_model(program), inputs.contiguous().numpy()))


def _require_deployed(saved: SavedModel, data: ImageData) -> None:
    of_training = saved.form.decomposition is not None and saved.form.layers is None
    # some methods train the dense network, and cut it afterwards
    uncut = saved.config.get("stage") in ("pretrain", "compress") and saved.form.layers is None
    if of_training or uncut:
        raise ExportError(
            "the network must be in the form that is deployed, but is in that of training; export a fine-tuned finalist, "
            "the dense baseline, or a cut such as trial-0003-cut-2"
        )
    if data.sample_shape != tuple(saved.spec.sample_shape) or data.num_classes != saved.spec.num_classes:
        raise ExportError(
            f"images must have the shape {saved.spec.sample_shape} and {saved.spec.num_classes} classes, but have "
            f"{data.sample_shape} and {data.num_classes}; give the data that the network was trained on"
        )
    known = saved.config.get("data")
    if known is not None and known != data.digest():
        raise ExportError(
            f"the data must be what the network was trained on (digest {known}), but has the digest {data.digest()}; its "
            "normalisation would be wrong"
        )


def _description(saved: SavedModel, data: ImageData, options: ExportOptions) -> Metadata:
    cost, dense = measure_cost(saved.model, saved.spec.sample_shape), dense_cost(saved.spec)
    pixels = options.input == "pixels"
    scale = {"mean": data.mean, "std": data.std}
    layers = saved.form.layers or ()
    return {
        "format": EXPORT,
        "version": VERSION,
        "made_with": {name: packages.version(name) for name in ("rankfront", "torch")},
        "model": as_record(saved.spec),
        "input": {
            "kind": options.input,
            "dtype": "uint8" if pixels else "float32",
            "shape": ["batch", *saved.spec.sample_shape],
            "normalisation": {"rule": "(x / 255 - mean) / std", "inside": pixels, **scale},
        },
        "output": {"dtype": "float32", "shape": ["batch", saved.spec.num_classes], "classes": list(data.class_names)},
        "weights": options.weights,
        "layers": [asdict(layer) for layer in layers],
        "ranks": {layer.name: layer.rank for layer in layers},
        "cost": {
            "macs": cost.macs,
            "params": cost.params,
            "macs_ratio": cost.macs / dense.macs,
            "params_ratio": cost.params / dense.params,
            "counter": cost.counter,
        },
        "accuracy": {key: value for key, value in _last(saved).items() if key.startswith("val_")},
        "training": saved.config,
        "data": {"digest": data.digest(), "images": len(data.labels), "licence": LICENCE},
    }


def _last(saved: SavedModel) -> dict[str, float]:
    return saved.history[-1]["metrics"] if saved.history else {}
