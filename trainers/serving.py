"""A trained network as others use it: images in, logits out, with nothing to know about its training."""

import torch
from torch import Tensor, nn

from trainers.data import ImageData


class Normalisation(nn.Module):
    """(N, C, H, W) uint8, 0 to 255, to what the network was trained on: (x - 255 mean) / (255 std), in `dtype`."""

    def __init__(self, data: ImageData, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> None:
        super().__init__()
        for name, values in (("mean", data.mean), ("std", data.std)):
            pixels = 255 * torch.tensor(values, dtype=dtype, device=device)
            self.register_buffer(name, pixels.reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (images.to(mean.dtype) - mean) / std


class PixelModel(nn.Module):
    """A network with the normalisation of its training data: (N, C, H, W) uint8, 0 to 255, to logits (N, classes).

    It is in evaluation mode, and `network` is the module that it was given, not a copy. Logits equal those of the network
    on `trainers.batches.normalize(images, data, dtype)`, up to the rounding of another memory order.
    """

    def __init__(self, network: nn.Module, data: ImageData) -> None:
        super().__init__()
        like = next(network.parameters())
        self.normalisation = Normalisation(data, like.dtype, like.device)
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        logits: Tensor = self.network(self.normalisation(images))
        return logits
