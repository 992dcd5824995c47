"""Networks as fine-tuning leaves them, low-rank and deployed, without a training: random weights and statistics."""

import torch
from torch import nn

from trainers.config import FactorizationConfig, ModelConfig, RankConfig
from trainers.data import ImageData
from trainers.deploy import prune, stored_spectra
from trainers.form import ModelForm
from trainers.layers import svd_layers
from trainers.models import ModelSpec, build_model
from trainers.saved_model import SavedModel
from trainers.surgery import factorize


def deployed(name, shape, num_classes=10, decomposition="spatial", data=None, energy=0.1):
    """A saved model cut by `energy`; its singular values fall off, so that many layers are low-rank."""
    torch.manual_seed(1)
    spec = ModelSpec(ModelConfig(name, (20, 12)), shape, num_classes)
    model = build_model(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    factorize(model, decomposition, shape)
    with torch.no_grad():
        for layer in svd_layers(model).values():
            norm = layer.s.norm()
            layer.s *= torch.linspace(1, 0, len(layer.s)) ** 3
            layer.s *= norm / layer.s.norm() if norm > 0 else 1
    pruned = prune(model, RankConfig(energy=energy), shape, stored_spectra(model))  # exact: only s was changed
    form = ModelForm(decomposition, FactorizationConfig(), None, tuple(pruned.layers))
    config = {} if data is None else {"data": data.digest()}
    return SavedModel(pruned.model, spec, form, config, [{"metrics": {"val_accuracy": 0.5}}])


def noise(shape, num_classes=10, count=96):
    """Images without meaning, of any size: two thirds for training."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % num_classes
    rows, cut = torch.arange(count), 2 * count // 3
    mean, std = ((0.5,) * shape[0], (0.25,) * shape[0])
    return ImageData(images, labels, rows[:cut], rows[cut:], mean, std, tuple(map(str, range(num_classes))))
