"""The networks: our own small ones, and every torchvision classifier by its name.

To add one: write a function (ModelConfig, sample shape (C, H, W), number of classes) -> module and enter it in MODELS.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.attention import open_attention
from trainers.config import ModelConfig
from trainers.errors import ConfigError
from trainers.rules import unknown_name

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a network: its config, one sample's shape (C, H, W) and the number of classes."""

    model: ModelConfig
    sample_shape: Shape
    num_classes: int


def build_model(spec: ModelSpec) -> nn.Module:
    """Return the network with fresh weights from torch's global generator; maps (N, C, H, W) to logits (N, classes).

    Raises ConfigError where the network does not fit the images.
    """
    name = spec.model.name
    if name in MODELS:
        model = MODELS[name](spec.model, spec.sample_shape, spec.num_classes)
    elif name in torchvision_names():
        model = _torchvision_classifier(name, spec)
    else:
        raise ConfigError([("model.name", unknown_name("model", name, model_names()))])
    _check_fit(model, spec)
    return model


def model_names() -> Collection[str]:
    """All names that `build_model` knows."""
    return [*MODELS, *torchvision_names()]


def torchvision_names() -> list[str]:
    """The names of torchvision's classifiers (not its detection, segmentation, video or quantized models)."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def mlp(config: ModelConfig, shape: Shape, num_classes: int) -> nn.Module:
    """Fully connected with ReLU; hidden widths from the config. (300, 100) is LeNet-300-100 (LeCun et al., 1998)."""
    widths = [shape[0] * shape[1] * shape[2], *config.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def lenet5(config: ModelConfig, shape: Shape, num_classes: int) -> nn.Module:
    """LeNet-5 in its Caffe form, 20-50-500, as the compression literature uses it: 431,080 parameters on MNIST."""
    height, width = ((side - 4) // 2 for side in shape[1:])
    height, width = (height - 4) // 2, (width - 4) // 2
    if min(height, width) < 1:
        raise ConfigError([("model.name", f"lenet5 needs images of at least 16 x 16, but got {shape[1]} x {shape[2]}")])
    return nn.Sequential(
        nn.Conv2d(shape[0], 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * height * width, 500),
        nn.ReLU(),
        nn.Linear(500, num_classes),
    )


def tiny(config: ModelConfig, shape: Shape, num_classes: int) -> nn.Module:
    """Three convolutions with BatchNorm and a linear layer, for the 8 x 8 digits and for tests: 57 k parameters."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


class PadShortcut(nn.Module):
    """Option A of He et al. 2016, section 4.2: every other pixel, and zero channels up to `channels`."""

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + added, H / stride, W / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class _BasicBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(stride, n_out - n_in)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 images: depth 6 n + 2, widths 16-32-64, shortcuts without parameters (He et al. 2016, 4.2)."""

    def __init__(self, depth: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1, but got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(n_in: int, n_out: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [_BasicBlock(n_out, n_out, 1) for _ in range(blocks - 1)]
        return nn.Sequential(_BasicBlock(n_in, n_out, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def _cifar_resnet(depth: int) -> Callable[[ModelConfig, Shape, int], nn.Module]:
    return lambda _config, shape, num_classes: CifarResNet(depth, shape[0], num_classes)


MODELS: dict[str, Callable[[ModelConfig, Shape, int], nn.Module]] = {
    "mlp": mlp,
    "lenet5": lenet5,
    "tiny": tiny,
    "resnet8": _cifar_resnet(8),
    "resnet20": _cifar_resnet(20),
    "resnet32": _cifar_resnet(32),
    "resnet56": _cifar_resnet(56),
    "resnet110": _cifar_resnet(110),
}

# constructors that would add auxiliary classifiers or a slow initialisation of weights
_TORCHVISION_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build_shapes(spec: ModelSpec) -> nn.Module:
    """Return the network on the meta device: shapes, and no weights. Raises as `build_model`."""
    try:
        with torch.device("meta"):
            return build_model(spec)
    except NotImplementedError:  # torchvision's RegNet computes its widths with tensors
        with torch.device("cpu"):
            return build_model(spec).to("meta")
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            [("model", f"{spec.model.name} must have sizes that a tensor can have, but: {reason}")]
        ) from error


def _torchvision_classifier(name: str, spec: ModelSpec) -> nn.Module:
    import torchvision

    options: dict[str, int | bool] = {"num_classes": spec.num_classes, **_TORCHVISION_OPTIONS.get(name, {})}
    if name.startswith("vit_"):
        options["image_size"] = spec.sample_shape[1]
    if spec.sample_shape[0] != 3:
        text = f"torchvision's {name} needs images of 3 channels, but the data has {spec.sample_shape[0]}"
        raise ConfigError([("model.name", f"{text}; choose one of {', '.join(MODELS)}")])
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    except ValueError as error:  # e.g. an image size that is not a multiple of the patch size
        raise ConfigError(
            [("model.name", f"{name} cannot be built for images {spec.sample_shape}: {error}")]
        ) from error
    return open_attention(model)


def _check_fit(model: nn.Module, spec: ModelSpec) -> None:
    """A forward pass on shapes alone: too small an image fails here, before any training."""
    import copy

    probe = copy.deepcopy(model).to("meta").eval()
    try:
        with torch.no_grad():
            shape = tuple(probe(torch.empty((2, *spec.sample_shape), device="meta")).shape)
    except (RuntimeError, AssertionError, IndexError, ValueError, ZeroDivisionError) as error:
        text = f"{spec.model.name} cannot take images of shape {spec.sample_shape} (C, H, W): {error}"
        raise ConfigError([("model.name", f"{text}; choose another model or a larger image_size")]) from error
    assert shape == (2, spec.num_classes), shape
