"""Exports, and model files, back as modules: `trainers.load`. Nothing is unpickled; damage is found before it computes."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.archives import require_whole
from trainers.errors import CheckpointError, ExportError
from trainers.export.formats import INPUT, METADATA, OUTPUT, Metadata
from trainers.export.graph_record import RecordedNetwork
from trainers.export.harmless import require_harmless_program, require_own_weights
from trainers.export.integrity import is_intact
from trainers.export.interface import Interface
from trainers.export.options import FORMATS, Format

EXPORT, VERSION = "rankfront export", 1
_PT2_METADATA = f"extra/{METADATA}.json"
_PT2_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PT2_INPUTS = "data/sample_inputs/model.pt"
_PT2_PROGRAM = "models/model.json"
_PT2_FOLDERS = ("data/weights/weight_", "data/constants/tensor_", ".data/")
_PT2_FILES = {
    *_PT2_CONFIGS,
    _PT2_INPUTS,
    _PT2_METADATA,
    _PT2_PROGRAM,
    "archive_format",
    "archive_version",
    "byteorder",
}


class Exported(nn.Module):
    """A network as it is deployed: inputs (N, C, H, W) as `metadata["input"]` says, to float32 logits (N, classes).

    `network` is what the file holds: a program, a module, or ONNX Runtime's session on the CPU behind torch tensors. It is
    in evaluation mode for good.
    """

    def __init__(self, network: nn.Module, metadata: Metadata) -> None:
        super().__init__()
        self.network = network
        self.metadata = metadata
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        logits: Tensor = self.network(images)
        return logits

    def train(self, mode: bool = True) -> "Exported":
        """Stay in evaluation mode; raises ValueError where training mode is asked for."""
        if mode:
            raise ValueError("an export must stay in evaluation mode; train the network from its model.pt")
        return self


class OnnxNetwork(nn.Module):
    """An ONNX model in ONNX Runtime, on the CPU, with as many threads as torch has."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, on the CPU."""
        (logits,) = self.session.run([OUTPUT], {INPUT: images.detach().cpu().numpy()})
        return torch.from_numpy(logits)


def load(path: str | Path) -> Exported:
    """Return the network in an export (.pt2, .onnx, .safetensors) or a model file (.pt), on the CPU.

    A model file gives the trained module, which takes normalised images, float32 ones even if it was trained in another
    type. Raises CheckpointError where the file is missing, damaged, foreign or of another version, ExportError where a
    package that reads it is not installed.
    """
    path = Path(path)
    suffix = path.suffix.removeprefix(".")
    if suffix == "pt":
        return _model_file(path)
    if suffix not in FORMATS:
        known = ", ".join(f".{name}" for name in (*FORMATS, "pt"))
        raise CheckpointError(f"{path} must be an export or a model file ({known}), but its suffix is {path.suffix!r}")
    if not path.is_file():
        raise CheckpointError(f"{path} must be an export, but there is none")
    return read_export(path.read_bytes(), suffix, str(path))


def read_export(content: bytes, format_: Format, name: str = "the given content") -> Exported:
    """Return the network in the content of an export; raises as `load`."""
    try:
        network, metadata = _READERS[format_](content)
    except ImportError as error:
        raise ExportError(
            f"{name} needs {error.name}, which is not installed; pip install 'rankfront[export]'"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except Exception as error:  # whatever a reader makes of foreign bytes
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{name} must be a whole {format_} export, but it is damaged or foreign: {reason}"
        ) from error
    return Exported(network, metadata)


def _model_file(path: Path) -> Exported:
    from trainers.config import as_record
    from trainers.saved_model import load_model

    saved = load_model(path)
    shape = ["batch", *saved.spec.sample_shape]
    metadata = {
        "model": as_record(saved.spec),
        "input": {"kind": "normalized", "dtype": "float32", "shape": shape},
        "training": saved.config,
        "history": saved.history,
    }
    model = saved.model.eval()
    is_float32 = next(model.parameters()).dtype == torch.float32
    return Exported(model if is_float32 else Interface(model, None), metadata)


def _checked(text: str | None) -> Metadata:
    """The metadata of an export, as far as its format and version are ours."""
    metadata = None if text is None else json.loads(text)
    if not isinstance(metadata, dict) or metadata.get("format") != EXPORT:
        raise CheckpointError("the file must be an export of rankfront, but was written by something else")
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"the export must have version {VERSION}, but has {metadata.get('version')}; use the rankfront that wrote it"
        )
    return metadata


def _require_intact(content: bytes) -> None:
    if not is_intact(content):
        raise CheckpointError(
            "the file must be whole and an export of rankfront, but its digest is not that of its bytes"
        )


def _read_pt2(content: bytes) -> tuple[nn.Module, Metadata]:
    require_whole(io.BytesIO(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name.partition("/")[2]: name for name in archive.namelist()}
        metadata = _checked(archive.read(parts[_PT2_METADATA]).decode() if _PT2_METADATA in parts else None)
        contents = {part: archive.read(name) for part, name in parts.items()}
        _require_plain(contents)
        require_harmless_program(contents[_PT2_PROGRAM])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(content))
    return program.module(), metadata


def _require_plain(parts: dict[str, bytes]) -> None:
    """Refuse an archive in which torch.export.load would unpickle or run something: ours has no such part."""
    entries = [entry for name in _PT2_CONFIGS for entry in json.loads(parts[name])["config"].values()]
    foreign = [name for name in parts if name not in _PT2_FILES and not name.startswith(_PT2_FOLDERS)]
    pickled = [entry["path_name"] for entry in entries if entry["use_pickle"]]
    if parts[_PT2_INPUTS] or foreign or pickled:
        names = ", ".join([*foreign, *pickled, *([_PT2_INPUTS] if parts[_PT2_INPUTS] else [])])
        raise CheckpointError(f"an export must hold nothing that is unpickled or run, but this one has {names}")


def _read_safetensors(content: bytes) -> tuple[nn.Module, Metadata]:
    from safetensors.torch import load as load_tensors

    tensors = load_tensors(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    metadata = _checked(header.get(METADATA))
    _require_intact(content)
    return RecordedNetwork(json.loads(header["graph"]), tensors), metadata


def _read_onnx(content: bytes) -> tuple[nn.Module, Metadata]:
    import onnxruntime  # noqa: F401  # without it there is nothing to be found in the file

    _require_intact(content)
    require_own_weights(content)
    network = OnnxNetwork(content)
    return network, _checked(network.session.get_modelmeta().custom_metadata_map.get(METADATA))


_READERS: dict[Format, Callable[[bytes], tuple[nn.Module, Metadata]]] = {
    "pt2": _read_pt2,
    "onnx": _read_onnx,
    "safetensors": _read_safetensors,
}
