"""What the report reads from model files: histories, full ranks and singular values of really trained networks."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from orchestrator.config import FinetuneConfig, SweepConfig, dump_config
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, write_records
from orchestrator.report.figures_networks import orthogonality_figure, rank_figure, spectra_figure, training_figure
from orchestrator.report.networks import histories, rank_table, spectra
from orchestrator.report.pictures import pictures
from orchestrator.report.sweep import read_sweep
from orchestrator.tuned import finetune_name
from trainers import Setting, TrainingConfig, compress, finetune, load_model, pretrain, train_dense
from trainers.config import CurveConfig, DataConfig, MethodConfig, ModelConfig
from trainers.models import ModelSpec

METHODS = {
    "channel": MethodConfig(
        method="svd_training", regularizer="l1", strength=0.01, rank_rule="equal_error", budget=0.3
    ),
    "spatial": MethodConfig(
        method="svd_training",
        decomposition="spatial",
        regularizer="l1",
        strength=0.01,
        rank_rule="equal_error",
        budget=0.3,
    ),
    "products": MethodConfig(method="lorita", rank_rule="equal_error", budget=0.3),
}


def record(name, stage, result, method, number=None, source=None):
    """As the ledger would write it."""
    metrics = result.metrics
    ranks = {key.removeprefix("rank/"): int(value) for key, value in metrics.items() if key.startswith("rank/")}
    return RunRecord(
        name, stage, "COMPLETE", f"id-{name}", source, number, json.dumps({"budget": 0.3}), method.method,
        decomposition=method.decomposition, epochs=result.epoch, val_accuracy=metrics["val_accuracy"],
        score=metrics.get("score"), macs=int(metrics["macs"]), macs_ratio=metrics["macs_ratio"],
        params=int(metrics["params"]), params_ratio=metrics["params_ratio"], layers=list(ranks) or None,
        ranks=list(ranks.values()) or None, duration_s=1.0, cpu_s=1.0, ended_at_s=1000.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, digits):
    """Three trials of different forms, each fine-tuned, and a dense baseline, without Ray."""
    folder = tmp_path_factory.mktemp("networks") / "sweep"
    paths = SweepPaths(folder)
    training = TrainingConfig(batch_size=64, pretrain_epochs=2, epochs=2, learning_rate=2e-3)
    setting = Setting(ModelSpec(ModelConfig("tiny"), digits.sample_shape, digits.num_classes), digits, training)
    curve = CurveConfig(num_points=0, recovery_steps=2)
    records = []
    for number, (name, method) in enumerate(METHODS.items()):
        start, trial = f"pretrain-{name}", f"trial-{number:04d}"
        (*_, last) = pretrain(setting, method, paths.run(start))
        records.append(record(start, "pretrain", last, method))
        (*_, last) = compress(setting, method, paths.run(start) / "model.pt", paths.run(trial), curve)
        # MACs and scores are set apart: each shall be on the front
        own = replace(
            record(trial, "trial", last, method, number, start), score=0.5 + number / 10, macs=10**5 * (number + 1)
        )
        records.append(replace(own, macs_ratio=own.macs / last.metrics["macs"] * last.metrics["macs_ratio"]))
        (*_, last) = finetune(setting, method, 1, paths.run(trial) / "model.pt", paths.run(finetune_name(own.name)))
        records.append(record(finetune_name(own.name), "finetune", last, method, number, trial))
    (*_, last) = train_dense(setting, 5, paths.run("dense"))
    records.append(record("dense", "dense", last, MethodConfig(method="dense")))
    config = SweepConfig("trained", ModelConfig("tiny"), DataConfig("digits"), finetune=FinetuneConfig(3, 1))
    paths.config.write_text(dump_config(config))
    write_records(records, paths.results)
    return read_sweep(folder)


def test_a_history_joins_the_stages_of_a_network(sweep):
    found = {history.name: history for history in histories(sweep)}
    assert set(found) == {"finetune-0000", "finetune-0001", "finetune-0002", "dense"}
    tuned = found["finetune-0001"]
    assert tuned.stages == [("pretrain", 1), ("trial", 3), ("finetune", 5)]
    assert tuned.epochs == [1, 2, 3, 4, 5]
    stored = load_model(sweep.paths.run("trial-0001") / "model.pt").history
    assert [metrics["val_accuracy"] for metrics in tuned.metrics[2:4]] == [e["metrics"]["val_accuracy"] for e in stored]
    assert found["dense"].epochs == [1, 2, 3, 4, 5]
    trace = {trace.name: trace for trace in training_figure(list(found.values())).data}["0001"]
    assert list(trace.y) == [100 * metrics["val_accuracy"] for metrics in tuned.metrics]


def test_orthogonality_is_of_those_that_have_it(sweep):
    traces = orthogonality_figure(histories(sweep)).data
    assert {trace.name for trace in traces} == {"0000", "0001"}  # not the products, not the dense network
    assert all(list(trace.x) == [1, 2, 3, 4] for trace in traces)


def test_full_ranks_are_those_of_the_matrices(sweep):
    table = rank_table(sweep)
    full = {  # min(m, n) of the tiny network's weights, by hand
        "channel": {"0": min(32, 9), "3": min(64, 32 * 9), "6": min(64, 64 * 9), "11": min(10, 64)},
        "spatial": {"0": min(32 * 3, 3), "3": min(64 * 3, 32 * 3), "6": min(64 * 3, 64 * 3), "11": min(10, 64)},
    }
    assert sorted(table.names) == sorted(r.name for r in sweep.records if r.stage in ("trial", "finetune"))
    assert table.layers == ["0", "3", "6", "11"]
    for column, name in enumerate(table.names):
        record = sweep.by_name[name]
        for row, layer in enumerate(table.layers):
            rank = dict(zip(record.layers, record.ranks, strict=True))[layer]
            assert table.ranks[row][column] == rank
            assert table.shares[row][column] == pytest.approx(rank / full[record.decomposition][layer])
    assert table.macs_ratios == sorted(table.macs_ratios)
    assert rank_figure(table).data[0].z[0][0] == 100 * table.shares[0][0]


def effective_weight(module, shape):
    """The weight (out, in, 3, 3) of a convolution of stride 2, or of two in a row, read off its answers to impulses."""
    (n, c) = shape
    impulses = torch.zeros(c * 9, c, 5, 5)
    for i in range(c * 9):
        channel, place = divmod(i, 9)
        impulses[i, channel, 1 + place // 3, 1 + place % 3] = 1
    bias = module[1].bias if isinstance(module, nn.Sequential) else module.bias
    answers = module(impulses) - (0 if bias is None else bias.view(1, -1, 1, 1))
    return answers[:, :, 1, 1].reshape(c, 3, 3, n).permute(3, 0, 1, 2)


@pytest.mark.parametrize("number", range(3), ids=METHODS)
def test_singular_values_are_those_of_what_the_network_computes(sweep, number):
    name = f"finetune-{number:04d}"
    found = {spectrum.layer: spectrum.values for spectrum in spectra(sweep) if spectrum.name == name}
    record = sweep.by_name[name]
    ranks = dict(zip(record.layers, record.ranks, strict=True))
    assert {layer: len(values) for layer, values in found.items()} == ranks
    model = load_model(sweep.paths.run(name) / "model.pt").model
    weight = effective_weight(model.get_submodule("3"), (64, 32)).detach().double()
    matrix = weight.flatten(1) if record.decomposition == "channel" else weight.permute(0, 3, 1, 2).reshape(192, 96)
    expected = torch.linalg.svdvals(matrix)[: ranks["3"]]
    assert found["3"] == pytest.approx((expected / expected[0]).tolist(), rel=1e-4, abs=1e-5)


def test_stage_one_is_shown_at_full_rank(sweep):
    before = [spectrum for spectrum in spectra(sweep) if spectrum.role == "stage 1"]
    assert {spectrum.name for spectrum in before} == {"pretrain-channel", "pretrain-spatial", "pretrain-products"}
    lengths = {(spectrum.name, spectrum.layer): len(spectrum.values) for spectrum in before}
    assert lengths["pretrain-spatial", "6"] == 192
    assert lengths["pretrain-channel", "6"] == lengths["pretrain-products", "6"] == 64
    names = {trace.name for trace in spectra_figure(spectra(sweep)).data}
    assert {"stage 1, channel", "0002"} <= names


def test_a_trial_that_went_on_from_another_comes_from_its_stage_one(sweep):
    """`search.continuation`."""
    records = [replace(r, source="trial-0000") if r.name == "trial-0002" else r for r in sweep.records]
    continued = replace(sweep, records=records)
    before = {spectrum.name for spectrum in spectra(continued) if spectrum.role == "stage 1"}
    assert before == {"pretrain-channel", "pretrain-spatial"}
    found = {history.name: history for history in histories(continued)}
    assert found["finetune-0002"].stages == [("pretrain", 1), ("trial", 3), ("trial", 5), ("finetune", 7)]


def test_a_finished_sweep_has_every_picture_but_latency(sweep):
    drawn = {each.key: each for each in pictures(sweep, [])}
    assert [key for key, each in drawn.items() if each.figure is None] == ["importances"]  # it has no study
    assert "latency" not in drawn
