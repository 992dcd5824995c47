"""Files that nobody should have written: each is refused by one clear error of ours, or reads as what was written."""

import json
import os
import struct
import zipfile
from contextlib import suppress
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deployed import deployed, noise
from hostile import mutations
from trial_records import record

from orchestrator.config import dump_config
from orchestrator.foresight import read_table
from orchestrator.front import read_front
from orchestrator.output import read_json, read_state
from orchestrator.paths import SweepPaths
from orchestrator.records import SCHEMA, read_records, write_records
from orchestrator.remote.fetch import bring
from orchestrator.remote.sources import RemoteFile
from orchestrator.report.sweep import read_sweep
from orchestrator.study import open_study
from orchestrator.tracking.spool import Spool
from orchestrator.tracking.store import read_ids
from trainers.checkpoint import load_checkpoint, read_payload, save_checkpoint, write_payload
from trainers.config import FactorizationConfig, LatencyConfig, MethodConfig, TrainingConfig
from trainers.errors import CheckpointError, ClusterError, RankfrontError, SweepError
from trainers.loop import Evaluation, Stage, each_alone, train
from trainers.methods import make_method
from trainers.methods.base import Network
from trainers.saved_model import load_model, save_model

SHAPE = (1, 8, 8)
NUM_MUTATIONS = 60


@pytest.fixture(scope="module")
def saved():
    return deployed("tiny", SHAPE, data=noise(SHAPE))


@pytest.fixture(scope="module")
def model_file(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(saved, path)
    return path


class TestModelFiles:
    def test_a_damaged_one_is_refused_or_whole(self, model_file, saved, tmp_path):
        refused = []
        for content in mutations(model_file.read_bytes(), NUM_MUTATIONS):
            (tmp_path / "model.pt").write_bytes(content)
            try:
                found = load_model(tmp_path / "model.pt")
            except CheckpointError as error:
                refused.append(str(error))
            else:
                for name, value in found.model.state_dict().items():
                    assert torch.equal(value, saved.model.state_dict()[name])
        assert len(refused) > NUM_MUTATIONS / 2
        assert all("model.pt must be" in text for text in refused)
        assert os.listdir(tmp_path) == ["model.pt"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"spec": 3}, {"spec": {"model": [], "sample_shape": [1], "num_classes": 2}}, {"form": None}, {"config": []},
            {"spec": {"model": {"name": "tiny"}, "sample_shape": [1, 8, 8], "num_classes": 2**62}}, {"history": {}},
            {"spec": {"model": {"name": "../x"}, "sample_shape": [1, 8, 8], "num_classes": 10}}, {"history": [3]},
            {"spec": {"model": {"name": "tiny"}, "sample_shape": ["a", 0, -1], "num_classes": 10}}, {"state_dict": {}},
            {"state_dict": {"0.weight": torch.zeros(())}}, {"state_dict": [1]}, {"form": {"layers": [{"name": "x"}]}},
            {"spec": {"model": {"name": "mlp", "hidden": [2**62]}, "sample_shape": [1, 8, 8], "num_classes": 10}},
        ],
    )  # fmt: skip
    def test_one_of_another_content_is_refused(self, model_file, tmp_path, changes):
        content = {
            key: value for key, value in read_payload(model_file, "model").items() if key not in ("format", "version")
        }
        write_payload(tmp_path / "model.pt", content.pop("kind"), {**content, **changes})
        with pytest.raises(CheckpointError, match=r"model\.pt must be a complete model file"):
            load_model(tmp_path / "model.pt")

    def test_an_archive_that_would_fill_the_memory_is_not_unpacked(self, model_file, tmp_path):
        packed = tmp_path / "packed.pt"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 10**8)
        with pytest.raises(CheckpointError, match="must be stored as they are"):
            read_payload(packed, "model")
        overlapping = bytearray(model_file.read_bytes())
        end = overlapping.rfind(b"PK\x05\x06")
        count, size, start = struct.unpack("<HII", overlapping[end + 10 : end + 20])
        entries = bytes(overlapping[start : start + size])
        forged = overlapping[:start] + entries * 9
        forged += struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count * 9, count * 9, size * 9, start, 0)
        with pytest.raises(CheckpointError, match=r"must be stored as they are|share one"):
            read_payload(bytes(forged), "model")

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
    def test_what_is_no_file_is_not_read(self, tmp_path, make):
        make(tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="but there is none"):
            load_model(tmp_path / "model.pt")


class TestCheckpoints:
    def stage(self, path):
        return Stage("pretrain", 2, TrainingConfig(batch_size=32), {"stage": "pretrain"}, path)

    def run(self, path):
        torch.manual_seed(0)
        method = make_method(MethodConfig(method="dense"), Network(SHAPE, FactorizationConfig()))
        method.prepare(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
        method.bind()
        return list(
            each_alone(train(method, noise(SHAPE), self.stage(path), lambda epoch: Evaluation({"val_accuracy": 0.5})))
        )

    def test_a_damaged_one_is_passed_over_or_refused(self, tmp_path):
        path = tmp_path / "checkpoint.pt"
        whole = self.run(path)
        content = path.read_bytes()
        (tmp_path / "checkpoint.before.pt").unlink()
        for damaged in mutations(content, NUM_MUTATIONS):
            path.write_bytes(damaged)
            try:
                found = self.run(path)
            except CheckpointError:
                continue
            assert [result.metrics for result in found] == [result.metrics for result in whole]

    @pytest.mark.parametrize("key", ["config", "history", "method", "model", "optimizer"])
    @pytest.mark.parametrize("value", [None, 3, [], {"a": 1}, [{"epoch": 1}]])
    def test_one_of_another_content_is_refused(self, tmp_path, key, value):
        path = tmp_path / "checkpoint.pt"
        self.run(path)
        payload = load_checkpoint(path)[1]
        content = {name: part for name, part in payload.items() if name not in ("format", "version", "kind")}
        save_checkpoint(path, {**content, key: value})
        if (key, value) == ("history", []):  # another training has that
            return
        with suppress(CheckpointError) if key == "method" else pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
            self.run(path)


class TestTables:
    @pytest.fixture
    def table(self, tmp_path):
        costs = {"macs_ratio": 0.5, "params": 10, "params_ratio": 0.5, "epochs": 1, "settings": '{"energy": 0.1}'}
        cut = {"epoch": 1, "settings": {}, "macs": 100, "params": 10, "score": 0.9}
        rows = [record(f"trial-{i:04d}", 0.9, 100 + i, **costs, curve=json.dumps([cut])) for i in range(30)]
        write_records(rows, tmp_path / "results.parquet")
        return rows

    def test_a_damaged_table_is_refused_or_whole(self, table, tmp_path):
        path, refused = tmp_path / "results.parquet", []
        for content in mutations(path.read_bytes(), 100):
            path.write_bytes(content)
            try:
                found = read_records(path)
            except SweepError as error:
                refused.append(str(error))
            else:
                assert found == table
        assert len(refused) > 50
        assert all("results.parquet must" in text for text in refused)

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "../../x"}, {"name": "/etc/x"}, {"name": ""}, {"name": None}, {"name": "a\nb"}, {"name": "a/b"},
            {"name": ".."},
            {"name": "x" * 300}, {"source": "../x"}, {"stage": "other"}, {"state": "DONE"}, {"settings": "{"},
            {"settings": "[1]"},
            {"curve": "3"}, {"curve": "[3]"}, {"curve": "[{}]"}, {"curve": "["}, {"curve": "[" * 5000},
            {"macs": None}, {"macs_ratio": 0.0},
            {"curve": '[{"epoch": 1, "settings": 3, "macs": 1, "params": 1, "score": 1}]'},
            {"layers": ["a"], "ranks": [1, 2]},
            {"curve": '[{"epoch": 1, "settings": {}, "macs": "1", "params": 1, "score": 1}]'},
        ],
    )  # fmt: skip
    def test_rows_that_no_sweep_writes_are_refused(self, table, tmp_path, changes):
        write_records([*table, replace(table[0], **{"name": "trial-0030", **changes})], tmp_path / "results.parquet")
        with pytest.raises(SweepError, match="must hold a sweep's runs"):
            read_front(tmp_path)

    def test_text_that_is_none_is_refused(self, tmp_path):
        columns = [
            pa.array([b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False)
            if f.name == "name"
            else pa.nulls(1, f.type)
            for f in SCHEMA
        ]
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), tmp_path / "results.parquet")
        with pytest.raises(SweepError, match=r"results\.parquet must"):
            read_records(tmp_path / "results.parquet")


class TestSmallFiles:
    @pytest.mark.parametrize("text", ["", "{", "[" * 10**5, "3", "null", '"x"', "[]", "\0"])
    def test_json_of_another_kind_is_refused(self, tmp_path, text):
        paths = SweepPaths(tmp_path)
        for file in (paths.environment, paths.state):
            file.write_text(text)
        with pytest.raises(SweepError, match=r"environment\.json must"):
            read_json(paths.environment, {})
        with pytest.raises(SweepError, match=r"sweep\.json must"):
            read_state(paths)

    @pytest.mark.parametrize("text", ["3", "{}", '{"run": 1}', "[" * 10**5, "\0"])
    def test_ids_of_another_kind_are_refused(self, tmp_path, text):
        (tmp_path / "runs.jsonl").write_text(text + "\n")
        with pytest.raises(SweepError, match=r"runs\.jsonl must be lines of JSON"):
            read_ids(tmp_path / "runs.jsonl", "mlflow.db")

    @pytest.mark.parametrize(
        "found", [{"packages": []}, {"hardware": 3}, {"git": "x"}, {"data": []}, {"data": {"train": "x"}}]
    )
    def test_an_environment_of_another_form_is_refused(self, tmp_path, small_sweep, found):
        paths = SweepPaths(tmp_path)
        paths.config.write_text(dump_config(small_sweep))
        write_records([record("trial-0000", None, None, "FAIL")], paths.results)
        paths.environment.write_text(json.dumps(found))
        with pytest.raises(SweepError, match=r"environment\.json must say"):
            read_sweep(tmp_path)

    @pytest.mark.parametrize("text", ["", "3", "[]", '{"layers": 3}', '{"layers": {"a": []}}', "[" * 10**5])
    def test_a_table_of_times_of_another_kind_is_refused(self, tmp_path, small_sweep, text):
        paths = SweepPaths(tmp_path)
        paths.latency_table.write_text(text)
        with pytest.raises(SweepError, match=r"latency_table\.json must be a table"):
            read_table(replace(small_sweep, latency=LatencyConfig()), paths)

    def test_an_identity_becomes_no_part_of_a_query(self, tmp_path):
        SweepPaths(tmp_path).state.write_text(json.dumps({"sweep_id": "a' OR '1' = '1", "store": "mlflow.db"}))
        with pytest.raises(SweepError, match=r"sweep\.json must"):
            read_state(SweepPaths(tmp_path))

    @pytest.mark.parametrize(
        ("kind", "path"),
        [
            ("artifact", "../../etc/passwd"), ("artifact", "/etc/passwd"), ("artifact", "."), ("model", "../other"),
            ("model", "runs"),
            ("model", "runs/other/mlflow_model"), ("artifact", "runs/../../x"), ("model", None), ("artifact", 3),
        ],
    )  # fmt: skip
    def test_records_for_mlflow_name_no_file_outside(self, tmp_path, kind, path):
        """What an artifact's record names is sent away, and the folder of a model is removed once it has been."""
        event = {"run": "trial-0000", "kind": kind, "value": {"path": path}, "time_s": 1.0}
        (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
        with pytest.raises(SweepError, match=r"events\.jsonl must be lines of JSON"):
            Spool(tmp_path)

    @pytest.mark.parametrize("offset", ["-5", "1e400", '"x"', "null", "[]"])
    def test_a_position_that_cannot_be_is_refused_or_the_beginning(self, tmp_path, offset):
        (tmp_path / "delivered.json").write_text(f'{{"offset": {offset}}}')
        with suppress(SweepError):
            assert Spool(tmp_path).read() == ([], 0, False)

    def test_a_damaged_study_is_one_clear_error(self, tmp_path):
        journal = tmp_path / "study.journal"
        open_study(journal, "x", 0).ask()
        content = journal.read_bytes()
        for damaged in mutations(content, 40):
            journal.write_bytes(damaged)
            with suppress(SweepError):
                open_study(journal, "x", 0)


class Hostile:
    """A cluster that lists what it likes."""

    shown = "the cluster"

    def __init__(self, *paths):
        self.files = [RemoteFile(path, 1, "0" * 64) for path in paths]

    def read(self, path):
        yield b"x"


@pytest.mark.parametrize(
    "paths",
    [
        ("../x",), ("/etc/x",), ("a/../../x",), ("a\0b",), ("a\nb",), ("\x1b[2J",), ("\ud800",), ("x" * 300,),
        ("a/" * 2000 + "a",), (".",),
        ("",), ("a//b",), ("a\\b",), (".lock",), (".fetched.json",), ("a", "a"), ("a", "a/b"), ("a/b/c", "a/b"), ("~",
        "a/./b"),
    ],
)  # fmt: skip
def test_a_cluster_cannot_write_where_it_likes(tmp_path, paths):
    with pytest.raises(ClusterError, match="nothing was fetched"):
        bring(Hostile("sweep.json", *paths), tmp_path / "home", [].append)
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_target_is_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "runs").symlink_to(tmp_path / "outside")
    (tmp_path / "home" / ".fetched.json").write_text("{}")
    with pytest.raises(RankfrontError):
        bring(Hostile("runs/model.pt"), tmp_path / "home", [].append)
    assert not list((tmp_path / "outside").iterdir())
