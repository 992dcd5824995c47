"""Finalists as MLflow models: logged with their runs, registered, loaded elsewhere, served."""

import logging
import subprocess
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from programs import RANKFRONT
from recorded import open_tracker, record_sweep
from servers import served_model

from orchestrator.front import read_front
from orchestrator.models import log_finalists, log_models, register
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.tracking.models import logged_model, pack_model
from trainers.batches import normalize
from trainers.data import load_test
from trainers.errors import SweepError
from trainers.saved_model import load_model
from trainers.serving import PixelModel

CHOICES = [{"decomposition": "channel", "energy": 0.05}, {"decomposition": "channel", "energy": 0.3}]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, small_sweep, digits):
    """A finished sweep whose finalists are logged."""
    paths = SweepPaths(tmp_path_factory.mktemp("models") / "sweep")
    records = record_sweep(small_sweep, paths.root, CHOICES)
    tracker = open_tracker(small_sweep, paths)
    log_finalists(read_front(paths.root), records, paths, digits, tracker)
    tracker.close()
    return paths


@pytest.fixture
def client(sweep, monkeypatch):
    """A client of the sweep's store, which is also what `models:/` means, without unpickling."""
    uri = f"sqlite:///{sweep.mlflow_db}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    return MlflowClient(uri)


@pytest.fixture
def images(small_sweep, digits):
    """Five test images, (5, 1, 8, 8) uint8."""
    return load_test(small_sweep.data, digits).images[:5]


def logits_of(paths, name, images, digits):
    """What the trained network itself says."""
    with torch.no_grad():
        network = load_model(paths.run(name) / "model.pt").model.eval()
        return network(normalize(images, digits, torch.float32)).numpy()


def test_pixels_in_logits_out(sweep, digits, images):
    name = read_front(sweep.root).finalists[0].name
    network = load_model(sweep.run(name) / "model.pt").model.double()
    mean, std = torch.tensor(digits.mean, dtype=torch.float64), torch.tensor(digits.std, dtype=torch.float64)
    expected = network.eval()((images.double() / 255 - mean) / std)
    torch.testing.assert_close(PixelModel(network.train(), digits)(images), expected, rtol=1e-12, atol=1e-12)


def test_each_finalist_is_a_model_of_its_run_with_its_metrics(sweep, client, small_sweep):
    records = {record.name: record for record in read_records(sweep.results)}
    points = read_front(sweep.root).finalists
    assert points
    for point in points:
        record = records[point.name]
        model = logged_model(client, record.run_id, record.name)
        assert (model.status, model.model_type) == ("READY", "classifier")
        assert {metric.key: metric.value for metric in model.metrics} == {
            key: getattr(record, key)
            for key in ("val_accuracy", "test_accuracy", "macs", "macs_ratio", "params", "params_ratio")
        }
        assert model.params["method"] == "svd_training"
        assert model.params["source"] == record.source
        run = client.get_run(record.run_id)
        assert run.info.status == "FINISHED"
        assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(model.model_id, 1)]
        assert len(client.get_metric_history(record.run_id, "val_accuracy")) == 1
        assert not sweep.packed_model(record.name).exists()


def test_a_model_loads_without_pickle_for_any_number_of_images(sweep, client, images, digits):
    for point in read_front(sweep.root).finalists:
        model = logged_model(client, point.run_id, point.name)
        network = mlflow.pytorch.load_model(model.model_uri)
        for count in (1, 5):
            found = network(images[:count]).detach().numpy()
            np.testing.assert_allclose(
                found, logits_of(sweep, point.name, images[:count], digits), rtol=1e-4, atol=1e-5
            )
        served = mlflow.pyfunc.load_model(model.model_uri)
        np.testing.assert_array_equal(served.predict(images.numpy()), found)
        assert served.metadata.model_id == model.model_id


def test_logging_again_changes_nothing(sweep, client, small_sweep, digits):
    records, front = read_records(sweep.results), read_front(sweep.root)
    experiment = client.get_experiment_by_name(small_sweep.name).experiment_id
    before = {model.model_id for model in client.search_logged_models([experiment])}
    tracker = open_tracker(small_sweep, sweep)
    log_finalists(front, records, sweep, digits, tracker)
    log_models([record for record in records if record.stage == "finetune"], sweep, digits, tracker)  # delivered twice
    assert tracker.flush(60) == 0
    tracker.close()
    assert {model.model_id for model in client.search_logged_models([experiment])} == before
    assert len(before) == len(front.finalists)


def test_a_network_that_cannot_be_packed_is_left_out_with_a_warning(sweep, small_sweep, digits, caplog):
    finalist = next(record for record in read_records(sweep.results) if record.stage == "finetune")
    tracker = open_tracker(small_sweep, sweep)
    with caplog.at_level(logging.WARNING, logger="orchestrator.models"):
        log_models([replace(finalist, name="finetune-9999")], sweep, digits, tracker)
    assert tracker.flush(60) == 0
    tracker.close()
    assert "finetune-9999 is not logged as a model" in caplog.text


def test_a_network_that_depends_on_its_input_cannot_be_packed(tmp_path):
    class Fickle(torch.nn.Module):
        def forward(self, images):
            return images.float().flatten(1) if images.sum() > 7 else images.float().flatten(1) * 2

    with pytest.raises(Exception, match="data-dependent"):
        pack_model(Fickle(), np.zeros((2, 1, 2, 2), np.uint8), tmp_path / "model")


def test_a_network_that_gives_something_else_once_packed_or_for_one_image_is_refused(tmp_path, monkeypatch):
    class Counting(torch.nn.Module):
        """Gives other logits at each call in Python, which a program cannot."""

        calls = 0

        def forward(self, images):
            Counting.calls += 1
            return images.float().flatten(1) + Counting.calls

    class Pairs(torch.nn.Module):
        def forward(self, images):
            return images.float().reshape(2, -1, 4)[:, 0]

    images = np.full((2, 1, 2, 2), 9, np.uint8)
    with pytest.raises(SweepError, match="must give the network's logits, but differs by"):
        pack_model(Counting(), images, tmp_path / "counting")
    with pytest.raises(SweepError, match="must leave the number of images open, but fixed it"):
        pack_model(Pairs(), images, tmp_path / "pairs")


class TestRegister:
    def test_finalists_become_versions_and_picks_their_aliases(self, sweep, client):
        done = subprocess.run(
            [RANKFRONT, "register", str(sweep.root), "--name", "digits-small"],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        front = read_front(sweep.root)
        versions = {v.tags["run"]: v for v in client.search_model_versions("name = 'digits-small'")}
        assert versions.keys() == {point.name for point in front.finalists}
        for pick, point in front.picks.items():
            version = client.get_model_version_by_alias("digits-small", pick)
            assert (version.version, version.run_id) == (versions[point.name].version, point.run_id)
            assert version.tags["macs"] == f"{point.macs:.6g}"
            assert f"models:/digits-small@{pick}" in done.stdout
        again = register(sweep.root, "digits-small")
        assert {(version.run, version.version, version.new) for version in again} == {
            (run, str(version.version), False) for run, version in versions.items()
        }
        assert len(client.search_model_versions("name = 'digits-small'")) == len(versions)
        assert MlflowClient().tracking_uri == client.tracking_uri

    def test_finalists_that_were_not_logged_are_logged_first(self, tmp_path, small_sweep, monkeypatch):
        record_sweep(small_sweep, tmp_path / "sweep", CHOICES[:1])
        found = register(tmp_path / "sweep", "late")
        assert all(version.new for version in found)
        assert len(found) == len(read_front(tmp_path / "sweep").finalists)

    def test_what_cannot_be_registered(self, sweep, tmp_path, small_sweep, monkeypatch):
        with pytest.raises(SweepError, match=r"the registry at sqlite:.* must take the model 'a/b'"):
            register(sweep.root, "a/b")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        with pytest.raises(SweepError, match="MLFLOW_TRACKING_URI must be the sweep's store"):
            register(sweep.root, "digits-small")


@pytest.mark.server
def test_a_registered_finalist_is_served(sweep, client, images, digits, tmp_path):
    register(sweep.root, "served")
    best = read_front(sweep.root).picks["best"].name
    with served_model("models:/served@best", client.tracking_uri, tmp_path) as ask:
        predictions = ask({"inputs": images.numpy().tolist()})["predictions"]
    np.testing.assert_allclose(predictions, logits_of(sweep, best, images, digits), rtol=1e-4, atol=1e-5)
