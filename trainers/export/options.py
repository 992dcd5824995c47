"""What an export can be, and which of it goes together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from trainers.errors import ConfigError, ExportError
from trainers.rules import Section, at_least

Format = Literal["pt2", "onnx", "safetensors"]
Weights = Literal["fp32", "fp16", "bf16", "int8"]
Input = Literal["pixels", "normalized"]
FORMATS: tuple[Format, ...] = get_args(Format)

_PACKAGES: dict[Format, tuple[str, ...]] = {
    "pt2": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("safetensors",),
}


@dataclass(frozen=True)
class ExportOptions(Section):
    """`weights`: their number type in the file; what goes in and comes out does not depend on it.

    `input`: `pixels` are images as they are, uint8, and the normalisation is part of the export; `normalized` are float32,
    normalised by the caller. `num_calibration`: training images from which int8 ranges are taken. `num_compared`: validation
    images on which the export is compared with the trained network.
    """

    format: Format
    weights: Weights = "fp32"
    input: Input = "pixels"
    num_calibration: Annotated[int, at_least(1)] = 256
    num_compared: Annotated[int, at_least(1)] = 256

    def problems(self) -> list[tuple[str, str]]:
        """int8 is ONNX Runtime's, bf16 is torch's."""
        if self.weights == "int8" and self.format != "onnx":
            return [
                (
                    "weights",
                    f"int8 must go with the format onnx, but got {self.format}; torch alone runs no int8 program",
                )
            ]
        if self.weights == "bf16" and self.format == "onnx":
            return [
                ("weights", "bf16 must go with pt2 or safetensors: ONNX Runtime computes no bf16 on CPUs; use fp16")
            ]
        return []


def export_options(
    output: Path, format_: str | None = None, weights: str = "fp32", input_: str = "pixels"
) -> ExportOptions:
    """Return the options of an export to the file `output`, whose suffix names the format, as `format_` does.

    Raises ConfigError where they do not go together, ExportError where the format's packages are not installed.
    """
    suffix = output.suffix.removeprefix(".")
    if suffix not in FORMATS or format_ not in (None, suffix):
        wanted = ", ".join(f".{name}" for name in FORMATS) if format_ is None else f".{format_}"
        raise ConfigError([("output", f"must end in {wanted}, but got {str(output)!r}")])
    if output.is_dir():
        raise ConfigError([("output", f"must be a file, but {str(output)!r} is a folder")])
    options = ExportOptions(suffix, weights, input_)  # type: ignore[arg-type]  # checked there
    require_packages(options.format)
    return options


def require_packages(format_: Format) -> None:
    """Raise ExportError where a package that writes this format is missing."""
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES[format_] if find_spec(name) is None]
    if missing:
        raise ExportError(f"{format_} needs {', '.join(missing)}, not installed here; pip install 'rankfront[export]'")
