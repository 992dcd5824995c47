"""The benchmarks run, and write what programs read; their figures are not asserted here."""

import json
import os
import subprocess
import sys

import pytest

REQUIRED = {"task", "method", "seed", "test_accuracy", "macs_ratio", "params_ratio", "core_s"}


def run(pytestconfig, script, *options):
    command = [sys.executable, str(pytestconfig.rootpath / "benchmarks" / script), *map(str, options)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=500, cwd=pytestconfig.rootpath)


def test_methods_writes_a_row_for_each_point(pytestconfig, tmp_path):
    options = ("--quick", "--methods", "dense", "lc", "--output", tmp_path / "out", "--json", tmp_path / "rows.json")
    run(pytestconfig, "methods.py", *options)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["method"] for row in rows] == ["lc", "lc", "dense"]
    assert all(row.keys() >= REQUIRED for row in rows)
    assert rows[2]["macs_ratio"] == 1 > rows[0]["macs_ratio"]
    assert all(row["core_s"] > 0 and row["test_accuracy"] > 0.5 for row in rows)
    first = (tmp_path / "rows.json").read_text()
    run(pytestconfig, "methods.py", *options)  # goes on from what is there: nothing is trained again
    assert (tmp_path / "rows.json").read_text() == first


def test_quantization_writes_a_row_for_each_file(pytestconfig, tmp_path):
    run(pytestconfig, "quantization.py", "--quick", "--output", tmp_path / "out", "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["network"], row["weights"]) for row in rows] == [
        (network, weights) for network in ("dense", "50 % of MACs") for weights in ("fp32", "fp16", "int8")
    ]
    assert all(row["test_accuracy"] > 0.5 for row in rows)
    for fp32, fp16, int8 in (rows[:3], rows[3:]):
        assert fp32["size_bytes"] > fp16["size_bytes"] > int8["size_bytes"]


def test_step_cost_writes_the_ratios(pytestconfig, tmp_path):
    file = tmp_path / "ratios.json"
    run(
        pytestconfig,
        "step_cost.py",
        "--model",
        "tiny",
        "--rounds",
        1,
        "--repeats",
        1,
        "--batch-size",
        8,
        "--json",
        file,
    )
    found = json.loads(file.read_text())
    keys = ("channel_vs_dense", "spatial_vs_dense", "two_conv_vs_channel", "two_conv_vs_spatial", "mlp_vs_dense")
    assert all(found[key] > 0 for key in keys)


def test_the_usual_implementation_computes_what_ours_does(pytestconfig, monkeypatch):
    """The baseline of `step_cost.py` is a fair one: same function, same penalties."""
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    import torch
    from step_cost import TwoConv, looped_penalty

    from trainers.layers import SVDConv, svd_layers
    from trainers.models import MODELS, ModelConfig
    from trainers.regularizers import hoyer, orthogonality
    from trainers.surgery import factorize, replace_modules

    for decomposition in ("channel", "spatial"):
        torch.manual_seed(0)
        model = MODELS["resnet8"](ModelConfig("resnet8"), (3, 16, 16), 10).double().eval()
        factorize(model, decomposition, (3, 16, 16))
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        expected = model(x)
        layers = [layer for layer in svd_layers(model).values() if isinstance(layer, SVDConv)]
        penalty = sum(0.01 * hoyer(x.s) + orthogonality(x.u) + orthogonality(x.vt) for x in layers)
        replace_modules(model, lambda module: TwoConv(module) if isinstance(module, SVDConv) else None)
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(looped_penalty(model, 0.01, 1.0), penalty, rtol=1e-6, atol=1e-9, check_dtype=False)


def test_speed_needs_neither_ray_nor_mlflow_nor_optuna(pytestconfig, tmp_path, monkeypatch):
    for name in ("ray", "mlflow", "optuna"):
        (tmp_path / "none" / name).mkdir(parents=True)
        (tmp_path / "none" / name / "__init__.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'none'}:{os.environ['PYTHONPATH']}")
    run(pytestconfig, "speed.py", "--quick", "--device", "cpu", "--output", tmp_path)
    found = json.loads((tmp_path / "speed_cpu.json").read_text())
    assert found["step_cost.py"]["throughput_vs_authors_spatial"] > 0
    assert found["environment"]["hardware"]["cpu_count"] > 0
    rows = found["epoch_time.py"]["epochs"]
    assert rows.keys() >= {"authors, channel", "eager, float32, spatial"}
    assert all(row["s"] > 0 and row["speedup"] > 0 for row in rows.values())
    assert [row["trials"] for row in found["array_scaling.py"]["rows"]] == [2]
    ways = found["end_to_end.py"]["ways"]
    assert [(way["trainings"], way["points"]) for way in ways.values()] == [
        (2, 16),
        (2, 16),
        (1, 1),
    ]  # of nine cuts each two are alike
    table = (tmp_path / "speed_cpu.md").read_text()
    assert all(
        text in table for text in ("# Speed on a CPU", "authors_spatial", "eager, bfloat16, channel", "torch 2.")
    )


def test_array_scaling_writes_a_row_for_each_number_of_trials(pytestconfig, tmp_path):
    options = ("--networks", "mlp", "--counts", 1, 3, "--steps", 2, "--rounds", 1, "--json", tmp_path / "rows.json")
    run(pytestconfig, "array_scaling.py", *options)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["batches"], row["trials"]) for row in rows] == [("shared", 1), ("own", 1), ("shared", 3), ("own", 3)]
    assert all(row["images_per_s"] > 0 and row["times_one_by_one"] > 0 and row["peak_bytes"] > 0 for row in rows)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_writes_what_each_way_takes(pytestconfig, tmp_path):
    file = tmp_path / "found.json"
    options = ("--model", "tiny", "--images", 143, "--batch-size", 32, "--rounds", 1, "--json", file)
    run(pytestconfig, "workers.py", *options)
    found = json.loads(file.read_text())
    assert found["steps"] == 4
    assert list(found["runs"]) == ["one worker, one thread", "one worker, two threads", "two workers, one thread each"]
    assert all(row[key]["median"] > 0 for row in found["runs"].values() for key in ("wall_s", "cpu_s"))


def test_finetuning_cost_compares_arrays_with_finalists_one_by_one(pytestconfig, tmp_path):
    options = ("--networks", "mlp", "--finalists", 3, "--arrays", 2, "--steps", "eager", "--rounds", 1)
    run(pytestconfig, "finetuning_cost.py", "--device", "cpu", *options, "--json", tmp_path / "found.json")
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert row["ways"].keys() == {"one by one, eager", "array of 2, eager"}
    assert all(way["ms"] > 0 and way["times_eager"] > 0 for way in row["ways"].values())
    assert row["macs_ratios"] == sorted(row["macs_ratios"])
    assert row["macs_ratios"][-1] < 1 < row["macs_with_padding"]["2"]
