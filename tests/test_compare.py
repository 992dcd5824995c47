"""Several sweeps by one reference point, as the command line prints them."""

import csv
import io
import json
import subprocess
from dataclasses import replace

import pytest
from programs import RANKFRONT
from test_report import CONFIG, TABLE, trial, write_directory

from orchestrator.objectives import front_hypervolume
from orchestrator.records import write_records
from orchestrator.report.compare import compare_sweeps, labels, read_sweeps
from trainers.errors import SweepError


def compare(*arguments):
    return subprocess.run(
        [RANKFRONT, "compare", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=200
    )


@pytest.fixture
def one(tmp_path):
    return write_directory(tmp_path / "one", TABLE)


@pytest.fixture
def searched(tmp_path):
    """A sweep of the same network that has no finalists."""
    return write_directory(tmp_path / "searched", [trial(0, 0.8, 100), trial(1, 0.6, 50, cuts=[(900, 0.99)])])


def test_equal_networks_have_their_usual_hypervolume(one, searched):
    sweeps = read_sweeps([one, searched])
    found = compare_sweeps(sweeps)
    assert found.reference_macs == 1000
    assert found.warnings == []
    for sweep, score in zip(sweeps, found.sweeps, strict=True):
        cuts = [cut for curve in sweep.series.curves for cut in curve]
        assert score.search_hypervolume == pytest.approx(front_hypervolume(cuts))
    assert found.sweeps[0].finetuned_hypervolume == pytest.approx(0.94 * 0.8 + 0.01 * 0.3)
    assert found.sweeps[1].finetuned_hypervolume is None
    assert [score.num_trials for score in found.sweeps] == [4, 2]
    assert found.sweeps[0].core_s == sum(record.cpu_s or 0 for record in TABLE)


def test_the_best_within_a_budget_is_chosen_on_validation_data(one, searched):
    first, second = compare_sweeps(read_sweeps([one, searched])).sweeps
    by_budget = {reached.budget: reached for reached in first.reached}
    assert (by_budget[0.05].score, by_budget[0.05].test_accuracy) == (None, None)
    assert (by_budget[0.1].score, by_budget[0.1].test_accuracy) == (0.2, None)
    assert (by_budget[0.2].score, by_budget[0.2].val_accuracy) == (0.8, 0.94)
    assert by_budget[0.2].test_accuracy == pytest.approx(0.93)
    assert (by_budget[0.75].score, by_budget[0.75].val_accuracy) == (0.93, 0.95)
    assert [reached.score for reached in second.reached] == [0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.99]


def test_a_smaller_network_is_measured_by_the_larger_one_s_macs(tmp_path, one):
    small = [replace(record, macs=record.macs and record.macs // 2) for record in TABLE]
    half = write_directory(tmp_path / "half", small, replace(CONFIG, model=replace(CONFIG.model, name="lenet5")))
    found = compare_sweeps(read_sweeps([one, half]))
    assert found.reference_macs == 1000
    assert [score.dense_macs for score in found.sweeps] == [1000, 500]
    assert found.sweeps[1].finetuned_hypervolume == pytest.approx(0.94 * 0.9 + 0.01 * 0.65)
    assert found.warnings == ["the networks are not the same (model.name: tiny in one, lenet5 in half)"]


def test_other_data_is_warned_of_and_where_it_lies_is_not(tmp_path, one):
    data = replace(CONFIG.data, max_train=100, root="/elsewhere")
    other = write_directory(tmp_path / "other", TABLE, replace(CONFIG, data=data))
    (warning,) = compare_sweeps(read_sweeps([one, other])).warnings
    assert warning == "accuracies are not of the same data (data.max_train: None in one, 100 in other)"


def test_labels_are_as_long_as_it_takes(tmp_path):
    folders = [write_directory(tmp_path / name / "demo", TABLE) for name in ("a", "b")]
    assert labels(read_sweeps(folders)) == ["a/demo", "b/demo"]
    assert labels(read_sweeps([folders[0], write_directory(tmp_path / "c", TABLE)])) == ["demo", "c"]


def test_too_few_sweeps_and_one_that_has_counted_nothing(one, tmp_path):
    with pytest.raises(SweepError, match="at least two output directories, but got 1"):
        read_sweeps([one])
    failed = write_directory(tmp_path / "failed", TABLE[3:4])
    with pytest.raises(
        SweepError, match="at least one run must have counted its MACs, but none of the sweep in .*failed"
    ):
        compare_sweeps(read_sweeps([one, failed]))


class TestCommand:
    def test_json_and_page(self, one, searched, tmp_path):
        done = compare(one, searched, "--format", "json", "--output", tmp_path / "page.html")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == compare_sweeps(read_sweeps([one, searched])).as_json()
        page = (tmp_path / "page.html").read_text()
        assert "2 sweeps compared" in page
        assert 'id="figure-fronts"' in page

    def test_csv_has_a_row_for_each_sweep(self, one, searched):
        rows = list(csv.DictReader(io.StringIO(compare(one, searched, "--format", "csv").stdout)))
        assert [row["label"] for row in rows] == ["one", "searched"]
        assert (rows[0]["test_accuracy_at_0.2"], rows[1]["test_accuracy_at_0.2"]) == ("0.9299999999999999", "")
        assert rows[1]["score_at_1"] == "0.99"

    def test_the_table_states_its_reference_and_warnings_go_to_stderr(self, one, tmp_path):
        other = write_directory(tmp_path / "other", TABLE, replace(CONFIG, data=replace(CONFIG.data, max_train=100)))
        done = compare(one, other)
        assert "Reference point: accuracy 0, 1 k MACs" in done.stdout
        assert done.stderr.startswith("Warning: accuracies are not of the same data")

    def test_an_error_is_one_line(self, one, tmp_path):
        done = compare(one, tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.stderr


def test_a_sweep_that_runs_on_is_read_as_it_stands(one, searched):
    """Nothing is kept from one reading to the next, and nothing in the directory changes."""
    before = compare_sweeps(read_sweeps([one, searched]))
    write_records(TABLE[:3], one / "results.parquet")
    after = compare_sweeps(read_sweeps([one, searched]))
    assert (before.sweeps[0].num_trials, after.sweeps[0].num_trials) == (4, 2)
    assert sorted(path.name for path in one.iterdir()) == ["config.yaml", "results.parquet"]
