"""What follows from shapes alone is found out once for a network, and anew when its modules change."""

import torch
from torch import nn

from trainers.deploy import exact_spectra, prune_to_ranks, rank_problem
from trainers.structure import once_per_structure
from trainers.surgery import factorize, layer_geometry

SHAPE = (1, 8, 8)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 5))


def test_a_network_is_asked_again_when_its_structure_changes():
    asked = []

    @once_per_structure
    def parameters(model, sample_shape):
        asked.append(sample_shape)
        return sum(parameter.numel() for parameter in model.parameters())

    model, other = network(), network()
    before = parameters(model, SHAPE)
    assert parameters(model, SHAPE) == parameters(other, SHAPE) == before
    assert len(asked) == 2  # once for each
    with torch.no_grad():
        model[0].weight.zero_()
    parameters(model, SHAPE)
    assert len(asked) == 2  # weights do not matter
    parameters(model, (1, 9, 9))
    model[2] = nn.Linear(144, 6)
    assert parameters(model, (1, 9, 9)) > before
    factorize(model, "channel", SHAPE)
    parameters(model, (1, 9, 9))
    assert len(asked) == 5


def test_the_cuts_of_a_network_run_it_on_shapes_once(monkeypatch):
    runs = []
    model = network()
    factorize(model, "spatial", SHAPE)
    spectra = exact_spectra(model)
    forward = nn.Flatten.forward
    monkeypatch.setattr(nn.Flatten, "forward", lambda self, x: (runs.append(x.device.type), forward(self, x))[1])
    for rank in (1, 2, 3):
        problem = rank_problem(model, spectra, SHAPE)
        prune_to_ranks(model, dict.fromkeys(problem.layers, rank), SHAPE, spectra)
    assert runs == ["meta"] * 2  # for the sizes of layers, and for the cost of what is no layer


def test_geometry_follows_a_change_in_place():
    model = network()
    before = layer_geometry(model, SHAPE)
    model[0] = nn.Conv2d(1, 4, 3, padding=1)
    model[2] = nn.Linear(256, 5)
    assert layer_geometry(model, SHAPE)["0"].positions > before["0"].positions
