"""K networks of one shape as one network, and the reason where a network has no such form."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainers.arrays.layers import ARRAY_LAYERS
from trainers.surgery import replace_modules

_SAMPLES = 3  # of the trial run: few, but more than BatchNorm needs


def array_form(model: nn.Module, count: int) -> nn.Module:
    """Return `count` networks like `model` as one: its state's names, each tensor with a first axis of `count`, unfilled.

    It maps (N, count C, ...), or (N, C, ...) that all share, to logits (N, count classes).
    """
    array = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}  # one for a layer that is used twice

    def form(module: nn.Module) -> nn.Module | None:
        if type(module) in ARRAY_LAYERS and module not in made:
            made[module] = ARRAY_LAYERS[type(module)](module, count)
        return made.get(module)

    replace_modules(array, form)
    return array.train()


def array_problem(model: nn.Module, sample_shape: tuple[int, ...]) -> str | None:
    """Return why networks like `model` cannot be trained as one, or None where they can.

    The layers must all have an array form, and a trial run must give what each network gives alone: a forward pass that
    mixes channels by itself does not.
    """
    for name, module in model.named_modules():
        holds = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if holds and type(module) not in ARRAY_LAYERS:
            return f"{name or 'the network'} ({type(module).__name__}) has no array form"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            return f"{name} averages its statistics over all batches (momentum: none)"
    pair = [_other_weights(model, seed) for seed in (0, 1)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        batches = torch.randn(2, _SAMPLES, *sample_shape, dtype=torch.float64)
        before = torch.get_rng_state()
        apart = [one(batch) for one, batch in zip(pair, batches, strict=True)]
        if not torch.equal(before, torch.get_rng_state()):
            return "it draws random numbers while it is trained, such as dropout's"
        shared = [one(batches[0]) for one in pair]
        try:
            found = [_stacked(pair)(torch.cat(list(batches), 1)), _stacked(pair)(batches[0])]
        except (RuntimeError, IndexError, ValueError) as error:
            return f"its forward pass does not take several networks' channels: {str(error).splitlines()[0]}"
    if all(_equal(one, other) for one, other in zip(found, (torch.cat(apart, 1), torch.cat(shared, 1)), strict=True)):
        return None
    return "its forward pass mixes channels outside of its layers"


def stack_state(array: nn.Module, models: Sequence[nn.Module]) -> None:
    """Copy the state of the models into that of their array."""
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, stacked in array.state_dict().items():
            for row, state in zip(stacked, states, strict=True):
                row.copy_(state[name])


def _stacked(pair: list[nn.Module]) -> nn.Module:
    array = array_form(pair[0], len(pair))
    stack_state(array, pair)
    return array


def _other_weights(model: nn.Module, seed: int) -> nn.Module:
    """A copy on the CPU in float64, in training mode, with every weight moved by a random tenth of its layer's scale."""
    generator = torch.Generator().manual_seed(seed)
    found = copy.deepcopy(model).to("cpu", torch.float64).train()
    with torch.no_grad():
        for parameter in found.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * (parameter.abs().mean() + 0.1) * noise)
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-6, atol=1e-9)
