"""What goes into an export and what comes out: images in, float32 logits out, whatever its weights are."""

import torch
from torch import Tensor, nn

from trainers.data import ImageData
from trainers.serving import Normalisation


class Interface(nn.Module):
    """A network of any number type between inputs and float32 logits (N, classes).

    `data` gives the normalisation of uint8 images; None: inputs are float32, normalised already. The network is in
    evaluation mode, and the one that was given, not a copy.
    """

    def __init__(self, network: nn.Module, data: ImageData | None) -> None:
        super().__init__()
        self.input = nn.Identity() if data is None else Normalisation(data)
        self.network = network
        self.dtype = next(network.parameters()).dtype
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        x = self.input(images)
        if self.dtype == torch.float32:
            logits: Tensor = self.network(x)
            return logits
        logits = self.network(x.to(self.dtype))
        return logits.to(torch.float32)
