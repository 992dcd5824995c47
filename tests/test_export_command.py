"""`rankfront export`: a run, a pick or a model file of a finished sweep, from the command line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recorded import record_sweep

from orchestrator.config import dump_config
from orchestrator.curves import candidates
from orchestrator.export import find_source
from orchestrator.front import read_front
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from trainers.batches import normalize
from trainers.curve import scoring_rows
from trainers.data import load_test
from trainers.errors import SweepError
from trainers.export.load import load
from trainers.saved_model import load_model

RANKFRONT = str(Path(sys.executable).parent / "rankfront")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, small_sweep):
    paths = SweepPaths(tmp_path_factory.mktemp("export") / "sweep")
    record_sweep(small_sweep, paths.root, [{"decomposition": "channel", "energy": 0.3}])
    return paths


def export(*arguments):
    command = [RANKFRONT, "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_pick_becomes_a_file_that_gives_its_logits(sweep, digits, small_sweep, tmp_path):
    done = export(sweep.root, "best", "--format", "safetensors", "--output", tmp_path / "out" / "n.safetensors")
    assert done.returncode == 0, done.stderr
    network = load(tmp_path / "out" / "n.safetensors")
    point = read_front(sweep.root).picks["best"]
    assert network.metadata["run"]["name"] == point.name
    assert network.metadata["run"]["test_accuracy"] == point.test_accuracy
    assert network.metadata["cost"]["macs"] == point.macs
    assert network.metadata["config"]["name"] == small_sweep.name
    assert network.metadata["accuracy"]["val_accuracy"] == point.val_accuracy
    test = load_test(small_sweep.data, digits)
    with torch.no_grad():
        expected = load_model(sweep.run(point.name) / "model.pt").model.eval()(
            normalize(test.images, test, torch.float32)
        )
        found = network(test.images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    size = (tmp_path / "out" / "n.safetensors").stat().st_size
    assert (
        f"n.safetensors: {size:,} bytes, {network.metadata['nodes']} nodes, weights fp32, 3 BatchNorm folded"
        in done.stdout
    )
    assert f"{point.macs:,} MACs" in done.stdout
    assert "the first class agrees on 100.00%" in done.stdout


def test_a_cut_is_exported_as_it_was_scored_without_fine_tuning(sweep, digits, small_sweep, tmp_path):
    trial = next(record for record in read_records(sweep.results) if record.stage == "trial")
    own, *others = candidates([trial])
    for cut in (own, others[-1]):
        file = tmp_path / f"{cut.name}.safetensors"
        done = export(sweep.root, cut.name, "--output", file)
        assert done.returncode == 0, done.stderr
        network = load(file)
        assert network.metadata["run"]["name"] == cut.name
        assert network.metadata["run"]["score"] == cut.score
        assert network.metadata["cost"]["macs"] == cut.macs
        rows = scoring_rows(digits, small_sweep.curve).validation_rows
        with torch.no_grad():
            predicted = network(digits.images[rows]).argmax(1)
        assert float((predicted == digits.labels[rows]).double().mean()) == pytest.approx(cut.score, abs=1e-9)


def test_what_can_be_named(sweep, tmp_path, small_sweep):
    finalist = read_front(sweep.root).finalists[0].name
    file = sweep.run(finalist) / "model.pt"
    assert find_source(sweep.root, finalist).model_file == file
    by_path = find_source(file, None)
    assert (by_path.model_file, by_path.config, by_path.record["name"]) == (file, sweep.config, finalist)
    assert find_source(sweep.run(finalist), None) == by_path
    assert find_source(sweep.root, "dense").record["stage"] == "dense"
    sweep.deployed(finalist).write_bytes(file.read_bytes())  # as `rankfront latency` leaves it
    assert find_source(sweep.root, finalist).model_file == sweep.deployed(finalist)
    sweep.deployed(finalist).unlink()
    alone = tmp_path / "model.pt"
    shutil.copy(file, alone)
    with pytest.raises(SweepError, match=r"lies in no sweep's output directory.*give --config"):
        find_source(alone, None)
    (tmp_path / "sweep.yaml").write_text(dump_config(small_sweep))
    assert find_source(alone, None, tmp_path / "sweep.yaml").config == tmp_path / "sweep.yaml"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("--output", "n.pt2"),
            "must be named that has a model.pt, but got ''; picks: best, smallest, knee; finalists: fine",
        ),
        (("nonsense", "--output", "n.pt2"), "but got 'nonsense'; picks: best, smallest, knee"),
        (("pretrain-channel", "--output", "n.pt2"), "must be in the form that is deployed, but is in that of training"),
        (("best", "--output", "n.txt"), "output: must end in .pt2, .onnx, .safetensors"),
        (("best", "--output", "n.pt2", "--weights", "int8"), "int8 must go with the format onnx"),
    ],
)
def test_errors_are_one_message_and_leave_nothing(sweep, tmp_path, arguments, text):
    done = subprocess.run(
        [RANKFRONT, "export", str(sweep.root), *arguments],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())
