"""CUDA graphs: what a GPU is told to do in one call of a function, recorded once and repeated without the host's work."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # calls before the capture: libraries choose their kernels and optimizers make their state in them


class Captured:
    """A function of CUDA tensors, called eagerly WARM_UP times and by a CUDA graph from then on.

    Shapes, and every tensor beside the arguments that the function reads or writes, must stay the same; it must not wait
    for the device. The result is overwritten by the next call. This is the pattern of PyTorch's notes on CUDA semantics,
    "whole-network capture": warm-up on a side stream, static inputs. `while_capturing` is called with True before the
    capture and with False after it.
    """

    def __init__(
        self, function: Callable[..., Tensor], while_capturing: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._function, self._while_capturing = function, while_capturing
        self._stream = torch.cuda.Stream()
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Call the function, or what was recorded of it."""
        if not self._inputs:
            self._inputs = tuple(torch.empty_like(given) for given in inputs)
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._eagerly()
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        assert self._result is not None
        self._graph.replay()
        return self._result

    def _eagerly(self) -> Tensor:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function(*self._inputs)
        current.wait_stream(self._stream)
        result.record_stream(current)
        return result

    def _capture(self) -> None:
        """Record one call; nothing is computed."""
        graph = torch.cuda.CUDAGraph()
        self._while_capturing(True)
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._result = self._function(*self._inputs)
        finally:
            self._while_capturing(False)
        self._graph = graph
