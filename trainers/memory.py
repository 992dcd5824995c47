"""Running out of memory: how it shows, and how what it left is given back."""

import ctypes
import gc
from functools import cache
from typing import Any

import torch

# what PyTorch raises as a plain RuntimeError: the allocator of host memory, CUDA itself, cuBLAS and cuDNN
_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the exception says that a device, or this machine, had no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def release_memory() -> None:
    """Give back what nothing refers to any more; call it outside the `except` block, whose traceback holds tensors."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def return_memory() -> None:
    """Give the system back what this process has freed; glibc keeps it otherwise, more with each network of other sizes."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """The function of glibc; None with another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
