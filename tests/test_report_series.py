"""What pictures of fronts show, and the one that matplotlib draws."""

import io
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from orchestrator.config import FinetuneConfig
from orchestrator.front import sweep_front
from orchestrator.records import RunRecord
from orchestrator.report.front_picture import front_png
from orchestrator.report.series import front_series, lowest_of_interest, short_name, spread_out

VERMILLION = (0xD5, 0x5E, 0x00)  # what is fine-tuned
BLUE = (0x00, 0x72, 0xB2)  # the front of the search


def trial(number, score, macs, state="COMPLETE", cuts=()):
    """A trial of two epochs on a dense network of 1,000 MACs and parameters; `cuts` are (macs, score) beside its own."""
    curve = [{"epoch": 2, "settings": {}, "macs": macs, "params": macs, "score": score}]
    curve += [{"epoch": 2, "settings": {"energy": m / 1000}, "macs": m, "params": m, "score": s} for m, s in cuts]
    return RunRecord(
        f"trial-{number:04d}", "trial", state, f"id{number}", "pretrain-channel", number, json.dumps({"energy": 0.1}),
        energy=0.1, epochs=2, val_accuracy=score, score=score, macs=macs, macs_ratio=macs / 1000, params=macs,
        params_ratio=macs / 1000, curve=json.dumps(curve),
    )  # fmt: skip


def finished(name, stage, accuracy, macs):
    return RunRecord(
        name, stage, "COMPLETE", name, val_accuracy=accuracy, test_accuracy=accuracy - 0.01, macs=macs,
        macs_ratio=macs / 1000, params=macs, params_ratio=macs / 1000,
    )  # fmt: skip


TABLE = [
    trial(0, 0.9, 500, cuts=[(700, 0.93), (100, 0.2)]),
    trial(1, 0.7, 300, "PRUNED"),
    trial(2, 0.8, 200, cuts=[(400, 0.85)]),
    RunRecord("trial-0003", "trial", "FAIL", "id3", error="boom"),
    finished("finetune-0002", "finetune", 0.94, 200),
    finished("finetune-0000-cut-1", "finetune", 0.93, 700),
    finished("finetune-0002-cut-1", "finetune", 0.9, 400),  # picked by an earlier, shorter sweep
    finished("dense", "dense", 0.95, 1000),
]


def names(records):
    return [record.name for record in records]


def test_every_point_stands_in_the_series_it_belongs_to():
    series = front_series(TABLE)
    assert names(series.trials) == ["trial-0000", "trial-0002"]
    assert names(series.stopped) == ["trial-0001"]
    assert [names(curve) for curve in series.curves] == [
        ["trial-0000-cut-2", "trial-0000", "trial-0000-cut-1"],
        ["trial-0002", "trial-0002-cut-1"],
    ]
    assert names(series.finalists) == ["finetune-0002", "finetune-0002-cut-1", "finetune-0000-cut-1"]
    assert names(series.final_front) == ["finetune-0002"]
    assert {name: cut.name for name, cut in series.before.items()} == {
        "finetune-0002": "trial-0002",
        "finetune-0002-cut-1": "trial-0002-cut-1",
        "finetune-0000-cut-1": "trial-0000-cut-1",
    }
    assert series.dense is not None
    assert series.dense.name == "dense"


def test_the_picture_and_the_table_have_the_same_front():
    series, front = front_series(TABLE), sweep_front(TABLE)
    assert names(series.front) == names(front.front)
    assert names(series.finalists) == names(front.finalists)


def test_what_is_below_the_picks_need_not_be_seen():
    config = FinetuneConfig(9, min_relative_score=0.5)
    assert lowest_of_interest(front_series(TABLE), config) == 0.8
    assert lowest_of_interest(front_series([]), config) == 0.0


def test_short_names():
    assert [short_name(record) for record in TABLE[:1] + TABLE[5:6]] == ["0000", "0000-cut-1"]


@given(st.lists(st.floats(0, 100), max_size=20).map(sorted), st.floats(0.1, 40))
def test_labels_keep_their_distance_and_their_order(places, gap):
    found = spread_out(places, gap, 0, 100)
    room = min(gap, 100 / max(1, len(places) - 1))
    assert all(b - a >= room - 1e-6 for a, b in itertools.pairwise(found))
    assert all(-1e-6 <= place <= 100 + 1e-6 for place in found)
    if all(b - a >= gap for a, b in itertools.pairwise(places)):
        assert found == pytest.approx(places)


def test_labels_that_are_too_close_share_their_shift():
    assert spread_out([50, 51, 80], 5, 0, 100) == pytest.approx([48, 53, 80])
    assert spread_out([0, 1], 5, 0, 100) == pytest.approx([0, 5])


class TestFrontPng:
    @staticmethod
    def colours(records):
        content = front_png(records, FinetuneConfig(9))
        assert content.startswith(b"\x89PNG")
        pixels = (imread(io.BytesIO(content))[:, :, :3] * 255).round().astype(int)
        assert pixels.shape == (460, 720, 3)
        return set(map(tuple, pixels.reshape(-1, 3).tolist()))

    def test_it_shows_the_fronts_before_and_after(self):
        assert {VERMILLION, BLUE, (0, 0, 0)} <= self.colours(TABLE)

    def test_a_search_without_finalists_and_a_sweep_that_has_just_begun(self):
        searched = self.colours(TABLE[:4])
        assert BLUE in searched
        assert VERMILLION not in searched
        for records in ([], TABLE[3:4]):
            assert not {VERMILLION, BLUE} & self.colours(records)
