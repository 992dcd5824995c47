"""Attention with its projections as ordinary linear layers, so that surgery can see and decompose them.

`nn.MultiheadAttention` holds its input projection as a bare parameter, and torchvision's Swin blocks hand their layers'
weights to a function; neither calls a layer that could be replaced. `open_attention` puts modules in their place that
compute the same with the same weights.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.surgery import replace_modules


def open_attention(model: nn.Module) -> nn.Module:
    """Replace, in place, the attention modules of torchvision's ViT and Swin by ones that call their projections.

    Outputs stay equal. Other modules are left alone: how they call an `nn.MultiheadAttention` is not known. Returns `model`.
    """
    from torchvision.models.swin_transformer import ShiftedWindowAttention
    from torchvision.models.vision_transformer import EncoderBlock

    replacements: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, EncoderBlock) and type(module.self_attention) is nn.MultiheadAttention:
            fused = module.self_attention
            replacements[fused] = SelfAttention(fused).train(fused.training)
        elif isinstance(module, ShiftedWindowAttention) and module.qkv is not None:  # else it is open already
            replacements[module] = WindowAttention(module).train(module.training)
    replace_modules(model, replacements.get)
    return model


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` as ViT calls it, query = key = value without masks: softmax(Q K^T / sqrt(d)) V, projected.

    Q, K, V come from one linear layer `in_proj` (3 E outputs). Takes and returns (N, tokens, E).
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.dropout = fused.num_heads, fused.dropout
        size, weight = fused.embed_dim, cast(Tensor, fused.in_proj_weight)
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype, "bias": fused.in_proj_bias is not None}
        self.in_proj = _linear(size, 3 * size, weight, fused.in_proj_bias, like)
        out = fused.out_proj
        self.out_proj = _linear(size, size, out.weight, out.bias, {**like, "bias": out.bias is not None})

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = True) -> tuple[Tensor, None]:
        """Return (attention output, None), as `nn.MultiheadAttention` does with need_weights=False."""
        if query is not key or key is not value or need_weights:
            raise ValueError("query, key and value must be one tensor, and need_weights must be False")
        batch, tokens, size = query.shape
        heads = self.in_proj(query).reshape(batch, tokens, 3, self.num_heads, size // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).reshape(batch, tokens, size)), None


class WindowAttention(nn.Module):
    """Attention in shifted windows with a learned position bias; x is (N, H, W, C) (Liu et al., ICCV 2021, section 3.2).

    Version 2 (Liu et al., CVPR 2022) normalises queries and keys, scales by a learned `logit_scale` and has no key bias.
    Takes over the position bias of torchvision's module `swin` with its parameters.
    """

    def __init__(self, swin: Any) -> None:
        super().__init__()
        self.window, self.shift, self.num_heads = tuple(swin.window_size), tuple(swin.shift_size), swin.num_heads
        self.attention_dropout, self.dropout = swin.attention_dropout, swin.dropout
        self.qkv, self.proj = swin.qkv, swin.proj
        self.logit_scale: nn.Parameter | None
        self.register_parameter("logit_scale", getattr(swin, "logit_scale", None))
        swin.qkv = swin.proj = swin.logit_scale = None  # its position bias is all that is still used
        self.position = swin

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H, W, C) to the same shape."""
        _, height, width, _ = x.shape
        below, right = ((-side) % window for side, window in zip((height, width), self.window, strict=True))
        x = F.pad(x, (0, 0, 0, right, 0, below))
        padded = x.shape[1:3]
        # a window as large as the image is not shifted
        shift = tuple(s if w < side else 0 for s, w, side in zip(self.shift, self.window, padded, strict=True))
        x = torch.roll(x, tuple(-s for s in shift), (1, 2)) if any(shift) else x
        windows = self._attend(self._split(x), self._mask(padded, shift, x) if any(shift) else None)
        x = self._join(windows, padded)
        x = torch.roll(x, shift, (1, 2)) if any(shift) else x
        return x[:, :height, :width].contiguous()

    def _split(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, windows, tokens of a window, C)."""
        n, height, width, channels = x.shape
        rows, columns = self.window
        x = x.reshape(n, height // rows, rows, width // columns, columns, channels)
        return x.transpose(2, 3).reshape(n, -1, rows * columns, channels)

    def _join(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Undo `_split` for images of `size` (H, W)."""
        rows, columns = self.window
        x = x.reshape(x.shape[0], size[0] // rows, size[1] // columns, rows, columns, -1)
        return x.transpose(2, 3).reshape(x.shape[0], *size, -1)  # `len` would fix the number of images for torch.export

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention within each window of x (N, windows, tokens, C); `mask` (windows, 1, tokens, tokens) is added."""
        n, windows, tokens, channels = x.shape
        heads = self._projected(x).reshape(n, windows, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5)
        if self.logit_scale is not None:
            scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * scale
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
        scores = scores + self.position.get_relative_position_bias()
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, self.attention_dropout, self.training)
        out = (weights @ v).transpose(2, 3).reshape(n, windows, tokens, channels)
        return F.dropout(self.proj(out), self.dropout, self.training)

    def _projected(self, x: Tensor) -> Tensor:
        out: Tensor = self.qkv(x)
        if self.logit_scale is None or (bias := self._qkv_bias()) is None:
            return out
        size = len(bias) // 3  # version 2 has no key bias: what the layer has added is taken off again
        return out - F.pad(bias[size : 2 * size], (size, size))

    def _qkv_bias(self) -> Tensor | None:
        """The bias of `qkv`, which is that of its last part where it is deployed as two layers."""
        layer = self.qkv[-1] if isinstance(self.qkv, nn.Sequential) else self.qkv
        return cast("Tensor | None", layer.bias)

    def _mask(self, size: tuple[int, ...], shift: tuple[int, ...], x: Tensor) -> Tensor:
        """(windows, 1, tokens, tokens): -100 between positions that only the cyclic shift has brought together."""
        regions = x.new_zeros((1, *size, 1))
        count = 0
        for rows in _regions(self.window[0], shift[0]):
            for columns in _regions(self.window[1], shift[1]):
                regions[:, rows, columns] = count
                count += 1
        labels = self._split(regions)[0, :, :, 0]
        return torch.where(labels[:, None] == labels[:, :, None], 0.0, -100.0)[:, None].to(x.dtype)


def _regions(window: int, shift: int) -> tuple[slice, slice, slice]:
    return slice(0, -window), slice(-window, -shift), slice(-shift, None)


def _linear(n_in: int, n_out: int, weight: Tensor, bias: Tensor | None, like: dict[str, Any]) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, **like)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
