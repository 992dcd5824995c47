"""int8 after training, by ONNX Runtime: weights by channel, activations by the ranges that they take on training images."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.export.formats import INPUT

_BATCH = 32


def quantize(model: Any, images: NDArray[Any]) -> Any:
    """Return an ONNX ModelProto with int8 weights and activations between quantize and dequantize nodes (QDQ).

    Weights are symmetric and scaled by output channel; activations have one scale each, from the smallest to the largest
    value on `images` (N, C, H, W), the model's inputs. Sums stay int32, the rest float32. Weights use 7 of their 8 bits:
    CPUs without VNNI instructions add pairs of products in int16, which 8 bits overflow, and logits were others there.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._batches: Iterator[NDArray[Any]] = iter(np.split(images, range(_BATCH, len(images), _BATCH)))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        made, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("made", "prepared", "quantized"))
        onnx.save(model, str(made))  # given as it is, weights would go to files that are then not found
        try:
            root.setLevel(logging.ERROR)  # ONNX Runtime gives advice through the root logger
            quant_pre_process(str(made), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(quantized),
                Images(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,
            )
        finally:
            root.setLevel(level)
        found = onnx.load(str(quantized))
    del found.graph.value_info[:]
    return found
