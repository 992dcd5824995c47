"""Pictures and the page, from output directories without any model: as a sweep leaves them, and as they never should be."""

import json
import re
from dataclasses import replace

import pytest

from orchestrator.config import FinetuneConfig, SweepConfig, dump_config
from orchestrator.curves import candidates
from orchestrator.objectives import front_hypervolume
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, write_records
from orchestrator.report.figures import front_figure, has_latency, latency_figure, progress_figure
from orchestrator.report.page import embedded
from orchestrator.report.pictures import pictures
from orchestrator.report.progress import search_progress
from orchestrator.report.rows import ROW, table_data
from orchestrator.report.series import front_series
from orchestrator.report.settings import (
    ABSENT,
    importances,
    make_axis,
    settings_axes,
    study_trials,
)
from orchestrator.report.sweep import read_sweep
from orchestrator.report.write import write_report
from orchestrator.study import open_study
from trainers.config import DataConfig, ModelConfig
from trainers.errors import SweepError

EVIL = '</script><img src="https://example.org/x" onerror="alert(1)"><!--&\u2028'
CONFIG = SweepConfig("evil", ModelConfig("tiny"), DataConfig("digits"), finetune=FinetuneConfig(9, 1))


def trial(number, score, macs, state="COMPLETE", cuts=(), settings=None, **more):
    """A trial of two epochs on a dense network of 1,000 MACs; `cuts` are (macs, score) beside its own."""
    curve = [{"epoch": 2, "settings": {}, "macs": macs, "params": macs, "score": score}]
    curve += [{"epoch": 2, "settings": {"energy": m / 1000}, "macs": m, "params": m, "score": s} for m, s in cuts]
    return RunRecord(
        f"trial-{number:04d}", "trial", state, f"id{number}", "pretrain-channel", number,
        json.dumps(settings or {"energy": 0.1, "regularizer": "l1"}), decomposition="channel", energy=0.1, epochs=2,
        val_accuracy=score, score=score, macs=macs, macs_ratio=macs / 1000, params=macs, params_ratio=macs / 1000,
        curve=json.dumps(curve), duration_s=4.0, cpu_s=3.0, ended_at_s=1000.0 + 10 * number, **more,
    )  # fmt: skip


def run(name, stage, accuracy, macs, order, **more):
    test = accuracy - 0.01 if stage in ("finetune", "dense") else None
    return RunRecord(
        name, stage, "COMPLETE", f"run-{name}", val_accuracy=accuracy, test_accuracy=test, macs=macs, macs_ratio=macs / 1000,
        params=macs, params_ratio=macs / 1000, duration_s=4.0, cpu_s=3.0, ended_at_s=1000.0 + 10 * order, **more,
    )  # fmt: skip


FAILED = RunRecord("trial-0003", "trial", "FAIL", "id3", trial_number=3, settings="{}", error=EVIL, ended_at_s=1030.0)
PRETRAIN = run("pretrain-channel", "pretrain", 0.9, 1000, 0)
NOTED = json.dumps({"energy": 0.01, "note": EVIL})
TABLE = [
    PRETRAIN,
    trial(1, 0.9, 500, cuts=[(700, 0.93), (100, 0.2)]),
    trial(2, 0.7, 300, "PRUNED"),
    FAILED,
    trial(4, 0.8, 200, cuts=[(400, 0.85)], settings=json.loads(NOTED)),
    run("finetune-0004", "finetune", 0.94, 200, 5, source="trial-0004", trial_number=4, settings=NOTED),
    run("finetune-0001-cut-1", "finetune", 0.95, 700, 6, source="trial-0001", trial_number=1, settings='{"energy": 0.7}'),
    run("dense", "dense", 0.96, 1000, 7),
]  # fmt: skip


def write_directory(folder, records, config=CONFIG):
    folder.mkdir(parents=True)
    paths = SweepPaths(folder)
    paths.config.write_text(dump_config(config))
    write_records(records, paths.results)
    return folder


@pytest.fixture
def directory(tmp_path):
    return write_directory(tmp_path / "sweep", TABLE)


def named(figure, name):
    """The x, y and runs of a trace; gaps are left out."""
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return {row[0]: (x, y) for x, y, row in zip(trace.x, trace.y, trace.customdata, strict=True) if row is not None}


class TestFront:
    def test_every_point_stands_where_it_belongs_in_percent(self):
        figure = front_figure(front_series(TABLE), CONFIG.finetune)
        assert named(figure, "trials") == {"trial-0001": (50, 90), "trial-0004": (20, 80)}
        assert named(figure, "stopped early") == {"trial-0002": (30, 70)}
        assert named(figure, "front of the search")["trial-0001-cut-1"] == (70, 93)
        assert named(figure, "fine-tuned") == {"finetune-0004": (20, 94), "finetune-0001-cut-1": (70, 95)}
        assert named(figure, "dense baseline") == {"dense": (100, 96)}
        assert {note.name for note in figure.layout.annotations} >= {"finetune-0004", "finetune-0001-cut-1"}
        assert len(named(figure, "curves of cuts")) == 5

    def test_axes_have_units_and_what_is_cut_off_is_counted(self):
        figure = front_figure(front_series(TABLE), CONFIG.finetune)
        assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == (
            "MACs (% of the dense network)",
            "validation accuracy (%)",
        )
        low, high = figure.layout.yaxis.range
        assert (70 < low < 80, 96 < high <= 101) == (True, True)
        assert "2 of 6 cuts lie lower" in [note.text for note in figure.layout.annotations]

    def test_latency_is_there_only_where_it_was_measured(self):
        plain = front_series(TABLE)
        assert not has_latency(plain)
        timed = [replace(record, latency_ms=2.5 if record.stage == "dense" else None) for record in TABLE]
        series = front_series(timed)
        assert has_latency(series)
        figure = latency_figure(series, CONFIG.finetune)
        assert named(figure, "dense baseline") == {"dense": (2.5, 96)}
        assert figure.layout.xaxis.title.text == "latency (ms)"


class TestProgress:
    def test_it_ends_at_the_sweep_s_hypervolume_and_counts_every_run(self):
        found = search_progress(TABLE)
        trials = [record for record in TABLE if record.stage == "trial"]
        assert found.names == ["trial-0001", "trial-0002", "trial-0003", "trial-0004"]
        assert found.hypervolume[-1] == pytest.approx(front_hypervolume(candidates(trials)))
        assert found.hypervolume == sorted(found.hypervolume)
        assert found.wall_s == [14, 24, 34, 44]  # from the start of stage 1
        assert found.core_s == [6, 9, 9, 12]

    def test_long_sweeps_are_drawn_in_minutes(self):
        found = search_progress([replace(record, ended_at_s=100 * (record.ended_at_s or 0)) for record in TABLE])
        figure = progress_figure(found)
        assert figure.layout.xaxis.title.text == "wall time (min)"
        assert figure.data[0].x[-1] == pytest.approx(found.wall_s[-1] / 60)


class TestSettings:
    def test_axes(self):
        log = make_axis("strength", [1e-4, 1e-2, None])
        assert log.places == [0, 1, ABSENT]
        assert [label for _, label in log.ticks] == ["0.0001", "0.001", "0.01"]
        assert make_axis("energy", [0.0, 5, 10]).places == [0, 0.5, 1]
        assert make_axis("rule", ["b", "a", None, True]).ticks == [(1 / 6, "True"), (0.5, "a"), (5 / 6, "b")]
        assert make_axis("one", [3, 3]).places == [0, 0]
        assert make_axis("count", [2, 3, 3]).ticks == [(0, "2"), (1, "3")]
        assert make_axis("none", [None, float("nan")]).places == [ABSENT, ABSENT]

    def test_only_settings_that_differ_have_one(self):
        trials = [trial(1, 0.9, 500), trial(2, 0.8, 300, settings={"energy": 0.2, "regularizer": "l1"})]
        assert [axis.name for axis in settings_axes(trials)] == ["energy", "MACs (%)", "accuracy (%)"]

    def test_the_parameter_that_decides_is_the_most_important(self, tmp_path):
        study = open_study(tmp_path / "study.journal", "s", 0, "random")
        for _ in range(60):
            asked = study.ask()
            energy = asked.suggest_float("energy", 0, 1)
            idle = asked.suggest_float("idle", 0, 1)
            study.tell(asked, [1 - energy + 1e-6 * idle, 100 * idle])
        before = (tmp_path / "study.journal").read_bytes()
        trials = study_trials(tmp_path / "study.journal")
        found = importances(trials)
        assert max(found.accuracy, key=found.accuracy.get) == "energy"
        assert max(found.macs, key=found.macs.get) == "idle"
        assert sum(found.accuracy.values()) == pytest.approx(1)
        assert importances(trials[:5]) == "at least 10 complete trials are needed, but the study has 5"
        assert (tmp_path / "study.journal").read_bytes() == before

    def test_a_damaged_journal_costs_its_picture_alone(self, tmp_path, directory):
        (directory / "study.journal").write_text("no journal\n")
        assert study_trials(directory / "study.journal") == []
        write_report(directory, tmp_path / "page.html")
        assert "at least 10 complete trials are needed, but the study has 0" in (tmp_path / "page.html").read_text()


class TestTable:
    def test_each_run_and_each_cut_is_a_row(self, directory):
        data = table_data(read_sweep(directory))
        rows = {row[0]: dict(zip(ROW, row, strict=True)) for row in data["rows"]}
        assert list(rows) == [
            *(record.name for record in TABLE),
            "trial-0001-cut-1",
            "trial-0001-cut-2",
            "trial-0004-cut-1",
        ]
        assert {name: row["kind"] for name, row in rows.items()} == {
            "pretrain-channel": "stage 1",
            "trial-0001": "trial",
            "trial-0002": "stopped",
            "trial-0003": "failed",
            "trial-0004": "trial",
            "finetune-0004": "fine-tuned",
            "finetune-0001-cut-1": "fine-tuned",
            "dense": "dense",
            "trial-0001-cut-1": "cut",
            "trial-0001-cut-2": "cut",
            "trial-0004-cut-1": "cut",
        }
        cut = rows["trial-0001-cut-1"]
        assert (cut["owner"], cut["changed"], cut["accuracy"], cut["macs_ratio"]) == (
            "trial-0001",
            {"energy": 0.7},
            0.93,
            0.7,
        )
        assert cut["front"] is True
        assert data["runs"]["trial-0003"]["error"] == EVIL
        assert data["settings"] == ["energy", "regularizer", "note"]

    def test_it_is_json_whatever_was_measured(self, tmp_path):
        odd = replace(trial(1, 0.9, 500), val_loss=float("nan"), orthogonality_error=float("inf"))
        data = table_data(read_sweep(write_directory(tmp_path / "odd", [odd])))
        assert json.loads(json.dumps(data, allow_nan=False))["runs"]["trial-0001"]["val_loss"] == "nan"


def without_code(page):
    """The page without our own scripts and plotly's; blocks of JSON stay."""
    return re.sub(r'<script(?: type="text/plain" id="plotly")?>.*?</script>', "", page, flags=re.DOTALL)


class TestPage:
    @pytest.fixture
    def page(self, tmp_path, directory):
        write_report(directory, tmp_path / "deep" / "page.html")
        return (tmp_path / "deep" / "page.html").read_text()

    def test_nothing_that_a_run_says_can_become_markup(self, page):
        content = without_code(page)
        assert "<img" not in content
        assert "example.org" in content  # it is there, as text
        blocks = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', content, re.DOTALL)
        data = {key: json.loads(text) for key, text in blocks}
        assert data["data"]["runs"]["trial-0003"]["error"] == EVIL
        assert {"theme", "data", "figure-front", "figure-hypervolume", "figure-settings"} <= data.keys()

    def test_it_refers_to_nothing_outside(self, page):
        content = without_code(page)
        assert not re.findall(r'\b(?:src|href|action|poster)="(?!#|data:)', content)
        assert "@import" not in content
        assert "url(" not in content
        assert "default-src 'none'" in content

    def test_it_says_what_was_found(self, page):
        assert "94.00 % <small>test accuracy with 70.0 % of the MACs</small>" in page  # the best by validation
        assert "2 <small>complete, 1 stopped early, 1 failed, of 64</small>" in page
        assert "-1.00 pp to dense" in page
        assert "runs/finetune-0004/model.pt" in page

    def test_json_in_a_page_survives_any_content(self):
        text = json.dumps({"a": EVIL}, ensure_ascii=False)
        assert not set("<>&\u2028") & set(embedded(text))
        assert json.loads(embedded(text)) == {"a": EVIL}


class TestUnfinishedSweeps:
    @pytest.mark.parametrize(
        ("records", "words"),
        [
            ([PRETRAIN], ["no trial has finished with an accuracy yet", "Nothing has been fine-tuned yet"]),
            ([PRETRAIN, FAILED], ["0 <small>complete, 0 stopped early, 1 failed"]),
            ([FAILED], ["0 <small>complete, 0 stopped early, 1 failed", "no trial is complete yet"]),
            ([PRETRAIN, TABLE[2]], ["no trial is complete yet"]),
            (TABLE[:5], ["best cut so far", "93.00 %"]),
        ],
        ids=["only stage 1", "one failure", "nothing but a failure", "only a stopped one", "no finalists"],
    )
    def test_what_is_there_is_shown(self, tmp_path, records, words):
        write_report(write_directory(tmp_path / "sweep", records), tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert [word for word in words if word not in page] == []

    def test_nothing_to_show_is_an_error(self, tmp_path):
        folder = write_directory(tmp_path / "sweep", [])
        with pytest.raises(SweepError, match="at least one run must have ended, but none of the sweep in .* has"):
            write_report(folder, tmp_path / "page.html")
        SweepPaths(folder).results.unlink()
        with pytest.raises(SweepError, match="at least one run must have ended"):
            read_sweep(folder)
        with pytest.raises(SweepError, match=r"must be the output directory of a sweep, but has no config\.yaml"):
            read_sweep(tmp_path)
        assert not (tmp_path / "page.html").exists()

    def test_every_picture_is_drawn_or_says_why_not(self, directory):
        for each in pictures(read_sweep(directory), []):
            assert (each.figure is None) == bool(each.reason), each.key
            assert each.title
            assert each.caption
