"""Networks timed in turn, layers merged back, and what `rankfront latency` leaves."""

import itertools
import json
import time
from pathlib import Path

import pytest
import torch
from recorded import record_sweep
from torch import nn

from orchestrator.front import read_front
from orchestrator.latency import Settings, latency_tables, measure
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from trainers.config import RankConfig
from trainers.deploy import prune, prune_to_ranks
from trainers.engines import inference
from trainers.errors import SweepError
from trainers.latency import (
    Latency,
    LayerLatency,
    layer_latencies,
    merged,
    quickest_in_turn,
    threads,
    time_in_turn,
    with_dense,
)
from trainers.layers import SVDConv, SVDLinear, svd_layers
from trainers.saved_model import load_model, save_model
from trainers.surgery import factorize

CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (5, 3), "stride": (2, 1), "padding": (2, 0), "bias": False},
    "dilated": {"kernel_size": 3, "dilation": (1, 2), "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "pointwise": {"kernel_size": 1, "stride": 2},
}


def test_calls_are_timed_in_turn_each_until_the_round_is_long_enough(monkeypatch):
    now, order = 0.0, []

    def call(name, seconds):
        def run():
            nonlocal now
            now += seconds
            order.append(name)

        return run

    monkeypatch.setattr("trainers.latency.time.perf_counter", lambda: now)
    found = time_in_turn({"slow": call("slow", 0.03), "fast": call("fast", 0.01)}, rounds=4)
    assert {name: one.median_ms for name, one in found.items()} == pytest.approx({"slow": 30, "fast": 10})
    assert all(one.low_ms == pytest.approx(one.high_ms) for one in found.values())
    first, second = ["slow", "fast", "fast"], ["fast", "fast", "slow"]
    assert order == ["slow"] * 5 + ["fast"] * 5 + 2 * (first + second)  # a warm-up, then rounds


def test_the_quickest_round_knows_nothing_of_what_comes_between():
    count = itertools.count()

    def call():
        end = time.perf_counter() + 0.0005
        while time.perf_counter() < end:
            pass
        if next(count) % 20 == 19:
            time.sleep(0.01)

    assert 0.5 <= quickest_in_turn({"call": call})["call"] < 0.8  # the mean is 1.0


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_two_convolutions_and_the_merged_one_compute_the_same(name, decomposition):
    layer = SVDConv(nn.Conv2d(6, 8, **CONVOLUTIONS[name]).double(), decomposition)
    pair = layer.low_rank((layer.u * layer.s)[:, :3].detach(), layer.vt[:3].detach())
    images = torch.randn(2, 6, 11, 12, dtype=torch.float64)
    one = merged(pair)
    assert isinstance(one, nn.Conv2d)
    torch.testing.assert_close(one(images), pair(images))


def test_two_linear_layers_and_the_merged_one_compute_the_same():
    layer = SVDLinear(nn.Linear(7, 5).double())
    pair = layer.low_rank((layer.u * layer.s)[:, :2].detach(), layer.vt[:2].detach())
    x = torch.randn(3, 4, 7, dtype=torch.float64)
    torch.testing.assert_close(merged(pair)(x), pair(x))


def test_a_one_dimensional_convolution_is_merged():
    layer = SVDConv(nn.Conv1d(4, 6, 3, stride=2, padding=1).double(), "channel")
    pair = layer.low_rank((layer.u * layer.s)[:, :2].detach(), layer.vt[:2].detach())
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    torch.testing.assert_close(merged(pair)(x), pair(x))


def test_every_low_rank_layer_is_timed_beside_its_dense_form():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    factorize(model, "channel", (3, 8, 8))
    ranks = dict.fromkeys(svd_layers(model), 2)
    pruned = prune_to_ranks(model, ranks, (3, 8, 8))
    found = layer_latencies(pruned.model, pruned.layers, torch.randn(2, 3, 8, 8))
    assert [layer.name for layer in found] == [layer.name for layer in pruned.layers if layer.form == "low_rank"]
    assert all(0 < layer.low_rank.median_ms < 1000 and 0 < layer.dense.median_ms < 1000 for layer in found)


def test_a_layer_is_made_dense_only_where_that_is_faster_for_certain():
    slow, fast = Latency(2.0, 1.9, 2.1), Latency(1.8, 1.7, 1.85)
    assert LayerLatency("a", slow, fast).faster_dense
    assert not LayerLatency("a", fast, slow).faster_dense
    assert not LayerLatency("a", slow, Latency(1.8, 1.7, 2.0)).faster_dense  # the quartiles overlap


def test_layers_of_the_same_shapes_are_timed_once():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8))
    factorize(model, "channel", (16,))
    pruned = prune_to_ranks(model, dict.fromkeys(svd_layers(model), 2), (16,))
    known = {}
    first, second, third = layer_latencies(pruned.model, pruned.layers, torch.randn(2, 16), rounds=2, known=known)
    assert (first.low_rank, first.dense) == (second.low_rank, second.dense)
    assert (third.low_rank, third.dense) != (first.low_rank, first.dense)
    assert len(known) == 2
    again = layer_latencies(pruned.model, pruned.layers, torch.randn(2, 16), rounds=2, known=known)
    assert again == [first, second, third]


@pytest.mark.parametrize("engine", ["eager", "onnxruntime"])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 5, 6)])
def test_an_engine_runs_the_network_as_it_is_in_evaluation(engine, shape):
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()] if len(shape) == 4 else [nn.Linear(6, 3)]
    model, images = nn.Sequential(*layers), torch.randn(shape)
    model(images)  # statistics that are not those of initialisation
    expected = model.eval()(images).detach()
    (found,) = (
        inference(model.train(), images, engine)()[:1] if engine == "onnxruntime" else [inference(model, images)()]
    )
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-5, rtol=1e-5)


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_an_undeployed_network_has_no_low_rank_layers(finalist):
    saved = load_model(SweepPaths(finalist).run("trial-0000") / "model.pt")
    with pytest.raises(ValueError, match="must be deployed"):
        with_dense(saved, ["0"])
    assert prune(saved.model, RankConfig(energy=0.3), saved.spec.sample_shape).layers


@pytest.fixture(scope="module")
def finalist(tmp_path_factory, small_sweep) -> Path:
    """The directory of a finished sweep."""
    output = tmp_path_factory.mktemp("latency") / "sweep"
    record_sweep(small_sweep, output, [{"decomposition": "channel", "energy": 0.3}])
    return output


def test_a_layer_made_dense_leaves_the_network_as_it_was_and_can_be_saved(finalist, digits, tmp_path):
    name = read_front(finalist).finalists[0].name
    saved = load_model(SweepPaths(finalist).run(name) / "model.pt")
    low = [layer.name for layer in saved.form.layers if layer.form == "low_rank"]
    assert low
    save_model(with_dense(saved, low[:1]), tmp_path / "dense.pt")
    again = load_model(tmp_path / "dense.pt")
    assert [layer.name for layer in again.form.layers if layer.form == "low_rank"] == low[1:]
    images = torch.randn(4, *digits.sample_shape)
    torch.testing.assert_close(again.model.eval()(images), saved.model.eval()(images), atol=1e-5, rtol=1e-5)


def test_the_finalists_are_timed_and_slow_layers_are_deployed_dense(finalist):
    found = measure(finalist, Settings(batches=(1, 8), engines=("onnxruntime", "eager"), rounds=3))
    paths, front = SweepPaths(finalist), read_front(finalist)
    names = ["dense", *(point.name for point in front.finalists)]
    cells = [(engine, batch, name) for engine in ("onnxruntime", "eager") for batch in (1, 8) for name in names]
    assert [(row.engine, row.batch, row.name) for row in found.networks] == cells
    assert json.loads(paths.latency.read_text())["device"] == "cpu"
    first = found.networks[: len(names)]
    times = {row.name: row.latency.median_ms for row in first}
    assert {record.name: record.latency_ms for record in read_records(paths.results) if record.latency_ms} == times
    for name in names[1:]:
        slow = [layer.name for layer in found.layers[name] if layer.faster_dense]
        assert found.made_dense.get(name, []) == slow
        assert paths.deployed(name).exists() == bool(slow)
        if slow:
            forms = {layer.name: layer.form for layer in load_model(paths.deployed(name)).form.layers}
            assert {forms[layer] for layer in slow} == {"dense"}
    assert latency_tables(found)


def test_without_finalists_there_is_nothing_to_time(finalist, tmp_path, small_sweep):
    with pytest.raises(SweepError, match="must be the output directory of a sweep"):
        measure(tmp_path, Settings())
    if not torch.cuda.is_available():
        with pytest.raises(SweepError, match="PyTorch finds no GPU for 'cuda'"):
            measure(finalist, Settings(device="cuda"))
