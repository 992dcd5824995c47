"""What runs a network on images when it is timed: eager PyTorch, `torch.compile`, or ONNX Runtime."""

import copy
from collections.abc import Callable
from typing import cast, get_args

import torch
from torch import Tensor, nn

from trainers.config import Engine

ENGINES: tuple[Engine, ...] = get_args(Engine)
Call = Callable[[], object]


def inference(model: nn.Module, images: Tensor, engine: Engine = "eager") -> Call:
    """Return the call that runs a copy of `model`, in evaluation mode, on `images`, of any shape, on their device.

    ONNX Runtime gets the network as it is exported: fp32, contiguous, BatchNorm folded, any number of images, and as many
    threads as torch has now. Raises ExportError where it is not installed or the network cannot be exported.
    """
    if engine == "onnxruntime":
        return _session(model, images)
    # of a layer that mixes channels, (N, H, W, C), these are the last already
    convolves = images.ndim == 4 and any(isinstance(module, nn.Conv2d) for module in model.modules())
    memory_format = torch.channels_last if convolves else torch.contiguous_format
    network = copy.deepcopy(model).to(images.device, images.dtype).to(memory_format=memory_format).eval()
    images = images.to(memory_format=memory_format)
    run = torch.compile(network) if engine == "compile" else network

    def call() -> Tensor:
        with torch.inference_mode():
            return cast(Tensor, run(images))

    return call


def _session(model: nn.Module, images: Tensor) -> Call:
    from trainers.export.folding import fold_batch_norm
    from trainers.export.formats import INPUT, onnx_model
    from trainers.export.options import require_packages
    from trainers.export.program import trace

    require_packages("onnx")
    from onnxruntime import InferenceSession, SessionOptions

    shape = tuple(images.shape[1:])
    network = fold_batch_norm(copy.deepcopy(model).cpu(), shape).model.float().to(memory_format=torch.contiguous_format)
    program = onnx_model(trace(network.requires_grad_(False), shape, torch.float32))
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    provider = "CUDAExecutionProvider" if images.is_cuda else "CPUExecutionProvider"
    session = InferenceSession(program.SerializeToString(), options, providers=[provider])
    inputs = {INPUT: images.float().contiguous().cpu().numpy()}
    return lambda: session.run(None, inputs)
