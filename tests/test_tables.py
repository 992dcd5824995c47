"""The documented tables: every column, the recipes as they stand, and one row for each network."""

import io
import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from orchestrator.front import sweep_front
from orchestrator.points import POINTS_SCHEMA, write_points
from orchestrator.records import SCHEMA, RunRecord, write_records
from orchestrator.terminal import plain_table
from orchestrator.tuned import on_trained_front

DENSE_MACS, DENSE_PARAMS = 1000, 100


def cut(epoch, settings, macs, score):
    return {"epoch": epoch, "settings": settings, "macs": macs, "params": macs // 10, "score": score}


def run(name, stage, macs, **columns):
    costs = {"macs": macs, "macs_ratio": macs / DENSE_MACS, "params": macs // 10, "params_ratio": macs / 1000}
    return RunRecord(name, stage, "COMPLETE", f"id-{name}", method="svd_training", **costs, **columns)


@pytest.fixture
def records():
    """A complete trial with a rung and three cuts at its end, one that was stopped, a finalist and the baseline."""
    energy = '{"energy": 0.1}'
    end = [cut(4, {}, 500, 0.9), cut(4, {"energy": 0.3}, 200, 0.8), cut(4, {"energy": 0.2}, 600, 0.7)]
    trial = run(
        "trial-0000", "trial", 500, trial_number=0, settings=energy, epochs=4, val_accuracy=0.6, score=0.9,
        curve=json.dumps([cut(2, {}, 550, 0.5), cut(2, {"energy": 0.3}, 250, 0.4), *end]),
    )  # fmt: skip
    stopped = replace(
        trial, name="trial-0001", state="PRUNED", trial_number=1, epochs=2, curve=json.dumps([cut(2, {}, 500, 0.3)])
    )
    tuned = run("finetune-0000-cut-1", "finetune", 200, trial_number=0, epochs=3, val_accuracy=0.85, test_accuracy=0.84)
    dense = run("dense", "dense", DENSE_MACS, epochs=9, val_accuracy=0.95, test_accuracy=0.94)
    return [trial, stopped, run("pretrain-channel", "pretrain", 1000), tuned, dense]


def points_of(records, path):
    write_points(records, sweep_front(records), path)
    table = pq.read_table(path)
    assert table.schema.equals(POINTS_SCHEMA)
    return table.to_pylist()


def test_points_have_one_row_for_each_network(records, tmp_path):
    rows = points_of(records, tmp_path / "points.parquet")
    shown = ("name", "kind", "run", "epoch", "macs", "score", "val_accuracy", "test_accuracy", "on_front", "picks")
    assert [tuple(row[key] for key in shown) for row in rows] == [
        ("trial-0000", "rung", "trial-0000", 2, 550, 0.5, None, None, False, None),
        ("trial-0000-cut-1", "rung", "trial-0000", 2, 250, 0.4, None, None, False, None),
        ("trial-0000", "trial", "trial-0000", 4, 500, 0.9, 0.6, None, True, None),
        ("trial-0000-cut-1", "cut", "trial-0000", 4, 200, 0.8, None, None, True, None),
        ("trial-0000-cut-2", "cut", "trial-0000", 4, 600, 0.7, None, None, False, None),
        ("trial-0001", "rung", "trial-0001", 2, 500, 0.3, None, None, False, None),
        ("finetune-0000-cut-1", "finalist", "finetune-0000-cut-1", 3, 200, None, 0.85, 0.84, True, "best smallest knee"),
        ("dense", "dense", "dense", 9, 1000, None, 0.95, 0.94, True, None),
    ]  # fmt: skip
    assert len({(row["name"], row["epoch"]) for row in rows}) == len(rows)
    assert [json.loads(row["settings"] or "{}").get("energy") for row in rows] == [
        0.1,
        0.3,
        0.1,
        0.3,
        0.2,
        0.1,
        None,
        None,
    ]
    for row in rows:
        assert row["macs_ratio"] == pytest.approx(row["macs"] / DENSE_MACS)
        assert row["params_ratio"] == pytest.approx(row["params"] / DENSE_PARAMS)


def test_no_runs_make_an_empty_table(tmp_path):
    assert points_of([], tmp_path / "points.parquet") == []


@pytest.mark.parametrize(("heading", "schema"), [("points.parquet", POINTS_SCHEMA), ("results.parquet", SCHEMA)])
def test_every_column_is_documented_with_its_type(heading, schema, pytestconfig):
    text = (pytestconfig.rootpath / "docs/tables.md").read_text().partition(f"## `{heading}`")[2].partition("\n## ")[0]
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    documented = [
        (name, kind.replace("&lt;", "<").replace("&gt;", ">"))
        for names, kind, *_ in rows
        for name in re.findall("`(.+?)`", names)
    ]
    actual = [(field.name, re.sub(r"<(item|element): ", "<", str(field.type))) for field in schema]
    assert [(name, kind.strip()) for name, kind in documented] == actual


@pytest.mark.parametrize("library", ["pandas", "polars", "DuckDB"])
def test_the_recipes_run_as_they_stand(library, records, tmp_path, pytestconfig, monkeypatch, capsys):
    pytest.importorskip(library.lower())
    text = (pytestconfig.rootpath / "docs/tables.md").read_text()
    (recipe,) = re.findall(rf"```python\n# {library}(?:.*?)\n(.*?)```", text, re.DOTALL)
    assert len(recipe.splitlines()) <= 4
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    write_records(records, folder / "results.parquet")
    points_of(records, folder / "points.parquet")
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, "tables.md", "exec"), {})
    shown = capsys.readouterr().out
    assert ("svd_training" if library == "DuckDB" else "finetune-0000-cut-1") in shown, shown
    assert "0.85" in shown or library == "polars", shown


def test_with_several_seeds_a_network_is_on_the_front_by_their_mean():
    """The first seed of finetune-0000 is dominated by finetune-0001, its mean is not."""
    runs = [
        run("finetune-0000", "finetune", 500, val_accuracy=0.80),
        run("finetune-0000-repeat-1", "finetune", 500, val_accuracy=0.96),
        run("finetune-0001", "finetune", 400, val_accuracy=0.85),
        run("finetune-0002", "finetune", 600, val_accuracy=0.87),
        run("dense", "dense", DENSE_MACS, val_accuracy=0.99),
    ]
    assert on_trained_front(runs) == {"finetune-0000", "finetune-0001", "dense"}


def test_where_there_is_no_room_names_fold_and_figures_stay():
    table = plain_table("Sweeps", "sweep")
    for _ in range(3):
        table.add_column("test\n%", justify="right", no_wrap=True)
    table.add_row("cifar10-resnet20-adam-with-a-long-name", *["97.80 ± 0.12"] * 3)
    text = io.StringIO()
    Console(file=text, width=60).print(table)
    assert text.getvalue().count("97.80 ± 0.12") == 3
    assert "…" not in text.getvalue()
