from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import FinetuneConfig
from orchestrator.finalists import pick_finalists
from orchestrator.front import sweep_front
from orchestrator.objectives import front_hypervolume, front_of
from orchestrator.records import SCHEMA, RunRecord, Table, read_records, write_records
from trainers.errors import SweepError


def trial(number, accuracy, macs, **changes):
    ratio = None if macs is None else macs / 1000
    fields = {"settings": '{"decomposition": "channel"}', "trial_number": number, "state": "COMPLETE", "params": 10}
    fields |= {"val_accuracy": accuracy, "macs": macs, "macs_ratio": ratio, "params_ratio": 0.5}
    return RunRecord(**{"name": f"trial-{number:04d}", "stage": "trial", "run_id": f"id{number}", **fields, **changes})


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
count = st.integers(1, 2**62)
ratio = st.floats(0, 1, exclude_min=True)
records = st.builds(
    RunRecord,
    name=st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True),
    stage=st.sampled_from(["pretrain", "trial", "finetune", "dense"]),
    state=st.sampled_from(["COMPLETE", "FAIL"]),
    run_id=text,
    macs=count,
    macs_ratio=ratio,
    params=count,
    params_ratio=ratio,
    val_accuracy=st.none() | st.floats(allow_nan=False),
    error=st.none() | text,
)
ranks = st.none() | st.dictionaries(text, st.integers(1, 2**31 - 1))
records = st.builds(
    lambda record, by_layer: (
        record if by_layer is None else replace(record, layers=list(by_layer), ranks=list(by_layer.values()))
    ),
    records,
    ranks,
)


@given(st.lists(records, max_size=5))
def test_records_survive_the_table(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "results.parquet"
    write_records(rows, path)
    assert read_records(path) == rows
    assert pq.read_schema(path).equals(SCHEMA)
    assert [file.name for file in path.parent.iterdir()] == ["results.parquet"]


def test_a_table_that_is_written_again_has_what_has_changed_since(tmp_path):
    table, rows = Table(tmp_path / "results.parquet"), [trial(number, 0.5, 10) for number in range(450)]
    for count in (199, 200, 201, 450):
        table.write(rows[:count])
        assert read_records(tmp_path / "results.parquet") == rows[:count]
    rows[7] = replace(rows[7], run_id="late")
    rows[210], rows[211] = rows[211], rows[210]
    table.write(rows)
    assert read_records(tmp_path / "results.parquet") == rows
    table.write(rows[:10])
    assert read_records(tmp_path / "results.parquet") == rows[:10]


def test_a_table_that_is_missing_damaged_or_foreign(tmp_path):
    path = tmp_path / "results.parquet"
    with pytest.raises(SweepError, match=r"must be the output directory of a sweep, but has no results\.parquet"):
        read_records(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(SweepError, match="readable parquet"):
        read_records(path)
    pq.write_table(pa.table({"name": ["x"]}), path)
    with pytest.raises(SweepError, match="this version's columns"):
        read_records(path)


def test_the_front_leaves_out_failed_and_dominated_trials_and_repeats():
    rows = [
        trial(0, 0.9, 500),
        trial(1, 0.8, 600),
        trial(2, 0.7, 100),
        trial(3, 0.99, 50, state="FAIL"),
        trial(4, None, None),
        trial(5, 0.9, 500),
        trial(6, float("nan"), 1),
    ]
    assert [row.name for row in front_of(rows)] == ["trial-0002", "trial-0000"]
    assert front_hypervolume(rows) == pytest.approx(0.9 * 0.5 + 0.7 * 0.4)


def test_finalists_are_spread_and_at_most_as_many_as_asked():
    rows = [trial(i, 0.5 + i / 100, 10 * 2**i) for i in range(6)]
    picks = pick_finalists(rows, FinetuneConfig(3))
    assert len({pick.name for pick in picks}) == 3
    assert len(pick_finalists(rows, FinetuneConfig(99))) == 6
    assert pick_finalists([trial(0, None, None, state="FAIL")], FinetuneConfig(3)) == []


def test_points_of_the_front_as_json():
    tuned = trial(7, 0.95, 100, stage="finetune", name="finetune-0002", source="trial-0002", test_accuracy=0.94)
    dense = trial(8, 0.97, 1000, stage="dense", name="dense", test_accuracy=0.96)
    earlier = trial(9, 0.6, 200, stage="finetune", name="finetune-0001", source="trial-0001", test_accuracy=0.6)
    rows = [trial(1, 0.6, 200), trial(2, 0.7, 100), tuned, earlier, dense]
    found = sweep_front(rows).as_json()
    assert [point["name"] for point in found["finalists"]] == ["finetune-0002", "finetune-0001"]  # 2 came to dominate 1
    keys = {"name", "run_id", "val_accuracy", "macs", "macs_ratio", "params", "params_ratio"}
    assert found.keys() == {"dense", "front", "finalists", "picks"}
    assert found["dense"].keys() == found["finalists"][0].keys() == keys | {"test_accuracy"}
    assert found["front"][0].keys() == keys
    assert found["finalists"][0]["test_accuracy"] == 0.94
    assert found["picks"] == dict.fromkeys(("best", "smallest", "knee"), "finetune-0002")
    empty = {"dense": None, "front": [], "finalists": [], "picks": {}}
    assert sweep_front([]).as_json() == empty
