"""`rankfront front` as a question, and the models that have a name."""

import csv
import io
import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import RANKFRONT

from orchestrator.config import dump_config
from orchestrator.front import FrontPoint, SweepFront, read_front
from orchestrator.pareto import knee, non_dominated
from orchestrator.paths import SweepPaths
from orchestrator.picks import PICKS, TOLERANCE, pick
from orchestrator.records import RunRecord, write_records
from orchestrator.selection import Bound, Limits, NothingMatchesError, as_csv, parse_accuracy, parse_bound, select

DENSE_MACS = 1000


def model(name, accuracy, macs, params=None):
    params = macs // 10 if params is None else params
    return FrontPoint(name, f"id-{name}", accuracy, None, accuracy, macs, macs / DENSE_MACS, params, params / 100)


DENSE = model("dense", 0.98, DENSE_MACS)
FINALISTS = [model("a", 0.90, 100), model("b", 0.965, 200), model("c", 0.97, 500), model("d", 0.975, 900)]
FRONT = SweepFront(DENSE, [model("cut", 0.8, 50)], FINALISTS, {}, 0.0, pick(FINALISTS, DENSE.accuracy))


class TestPicks:
    def test_each_name_on_a_front_worked_out_by_hand(self):
        # b lies 0.74 above the chord from a to d at its MACs, c 0.43; c and d are within one point of 98 %
        assert {name: point.name for name, point in FRONT.picks.items()} == {"best": "d", "smallest": "c", "knee": "b"}
        assert tuple(FRONT.picks) == PICKS
        assert FRONT.picked_as("c") == ["smallest"]
        assert FRONT.picked_as("a") == []

    def test_smallest_is_the_fewest_macs_where_nothing_is_close_to_dense_or_dense_is_unknown(self):
        assert pick(FINALISTS, 0.99)["smallest"].name == "a"
        assert pick(FINALISTS, None)["smallest"].name == "a"
        assert pick(FINALISTS, 0.97 + TOLERANCE)["smallest"].name == "c"

    def test_a_model_that_another_dominates_or_without_accuracy_has_no_name(self):
        worse = [replace(DENSE, name="worse"), model("unknown", None, 1), model("same", 0.9, 100), *FINALISTS]
        names = {name: point.name for name, point in pick(worse[1:], 0.98).items()}
        assert names == {"best": "d", "smallest": "c", "knee": "b"}
        assert pick([model("unknown", None, 1)], 0.98) == {}
        assert pick([], None) == {}

    def test_one_model_has_all_names(self):
        assert {point.name for point in pick(FINALISTS[:1], 0.98).values()} == {"a"}


class TestKnee:
    def test_no_bend_gives_the_best_end_in_the_first_objective(self):
        line = np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [4.0, 0.0]])
        assert knee(line) == 0
        assert knee(np.array([[0.0, 1.0], [0.9, 0.9], [1.0, 0.0]])) == 0  # bent to the other side
        assert knee(np.array([[3.0, 1.0], [1.0, 2.0]])) == 1
        assert knee(np.array([[5.0, 5.0]])) == 0
        assert knee(np.array([[np.nan, 1.0]])) is None
        assert knee(np.empty((0, 2))) is None

    @given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12))
    def test_no_point_of_the_front_is_farther_from_the_chord(self, pairs):
        """Distances by the formula for a point and a line through two points, signed towards (0, 0)."""
        points = np.array(pairs, dtype=np.float64)
        front = points[non_dominated(points)]
        first, last = front[front[:, 0].argmin()], front[front[:, 1].argmin()]
        span = np.where(np.ptp(front, axis=0) > 0, np.ptp(front, axis=0), 1)
        (x1, y1), (x2, y2) = first / span, last / span

        def distance(point):
            x, y = point / span
            length = np.hypot(x2 - x1, y2 - y1)
            return ((y1 - y) * (x2 - x1) - (x1 - x) * (y2 - y1)) / length if length else 0.0

        row = knee(points)
        assert non_dominated(points)[row]
        assert distance(points[row]) == pytest.approx(max(distance(point) for point in front), abs=1e-9)


class TestBounds:
    @pytest.mark.parametrize(
        ("text", "bound"),
        [
            ("1200000", Bound(1.2e6, False)),
            ("1.2e6", Bound(1.2e6, False)),
            ("40M", Bound(4e7, False)),
            ("900 k", Bound(9e5, False)),
            ("2G", Bound(2e9, False)),
            ("50%", Bound(0.5, True)),
            ("12.5 %", Bound(0.125, True)),
        ],
    )
    def test_counts_and_shares(self, text, bound):
        assert parse_bound(text) == bound

    @pytest.mark.parametrize("text", ["0.5", "", "-3", "40Q", "0%", "many", "1_000", "nan", "inf", "5%%"])
    def test_anything_else_is_refused_with_the_rule(self, text):
        with pytest.raises(ValueError, match=r"a count from 1 .* or a share of the dense network \(50%\), but got"):
            parse_bound(text)

    def test_accuracies(self):
        assert parse_accuracy("0.97") == parse_accuracy("97%") == pytest.approx(0.97)
        for text in ("97", "-1", "x", "101%"):
            with pytest.raises(ValueError, match=r"a fraction of 1 \(0\.97\) or a percentage \(97%\), but got"):
                parse_accuracy(text)


class TestSelect:
    def test_a_latency_that_was_not_measured_keeps_to_no_limit(self):
        timed = [replace(FINALISTS[0], latency_ms=2.0), replace(FINALISTS[1], latency_ms=3.0), *FINALISTS[2:]]
        front = replace(FRONT, finalists=timed)
        assert [point.name for point in select(front, Limits(max_latency_ms=2.5), knee=False).finalists] == ["a"]
        with pytest.raises(NothingMatchesError, match="latency of at most 1 ms; the shortest latency is 2 ms"):
            select(front, Limits(max_latency_ms=1), knee=False)
        with pytest.raises(NothingMatchesError, match="no latency was measured"):
            select(FRONT, Limits(max_latency_ms=1), knee=False)

    @pytest.mark.parametrize(
        ("limits", "names"),
        [
            (Limits(), "abcd"),
            (Limits(max_macs=parse_bound("500")), "abc"),
            (Limits(max_macs=parse_bound("50%")), "abc"),
            (Limits(max_params=parse_bound("49")), "ab"),
            (Limits(max_params=parse_bound("20%")), "ab"),
            (Limits(min_accuracy=0.965), "bcd"),
            (Limits(parse_bound("20%"), None, 0.96), "b"),
        ],
    )
    def test_those_that_keep_to_all_limits(self, limits, names):
        kept = select(FRONT, limits, knee=False)
        assert "".join(point.name for point in kept.finalists) == names
        assert kept.front == []
        assert kept.picks == FRONT.picks

    def test_the_knee_is_that_of_what_is_left(self):
        assert [point.name for point in select(FRONT, Limits(), knee=True).finalists] == ["b"]
        assert [point.name for point in select(FRONT, Limits(parse_bound("200")), knee=True).finalists] == ["b"]
        assert [point.name for point in select(FRONT, Limits(parse_bound("150")), knee=True).finalists] == ["a"]

    def test_before_fine_tuning_the_search_is_asked(self):
        early = replace(FRONT, finalists=[])
        assert [point.name for point in select(early, Limits(parse_bound("5%")), knee=True).front] == ["cut"]

    def test_what_matches_nothing_says_what_comes_closest(self):
        with pytest.raises(NothingMatchesError) as caught:
            select(FRONT, Limits(parse_bound("50"), parse_bound("1%"), 0.99), knee=False)
        assert str(caught.value) == (
            "none of the 4 finalists has at most 50 MACs and at most 1% of the dense network's parameters and a "
            "validation accuracy of at least 99%; the fewest MACs are 100 (10.0%, with 10 parameters), the best "
            "validation accuracy is 97.50%; relax a limit"
        )
        with pytest.raises(NothingMatchesError, match="no complete trial yet"):
            select(SweepFront(None, [], [], {}, 0.0), Limits(), knee=True)


def test_csv_has_one_line_a_model():
    rows = list(csv.DictReader(io.StringIO(as_csv(FRONT))))
    assert [(row["stage"], row["name"], row["picks"]) for row in rows] == [
        ("dense", "dense", ""),
        ("front", "cut", ""),
        ("finalist", "a", ""),
        ("finalist", "b", "knee"),
        ("finalist", "c", "smallest"),
        ("finalist", "d", "best"),
    ]
    assert (rows[2]["val_accuracy"], rows[2]["macs"], rows[2]["score"]) == ("0.9", "100", "")


@pytest.fixture
def directory(tmp_path, small_sweep):
    """A recorded sweep of one trial with a curve, its finalist and the dense baseline."""
    costs = {"params": 50, "params_ratio": 0.5}
    cuts = [
        {"epoch": 2, "settings": {}, "macs": 500, "params": 50, "score": 0.9},
        {"epoch": 2, "settings": {"energy": 0.3}, "macs": 100, "params": 10, "score": 0.85},
    ]
    trial = RunRecord(
        "trial-0000", "trial", "COMPLETE", "t", settings="{}", epochs=2, val_accuracy=0.8, score=0.9, macs=500,
        macs_ratio=0.5, curve=json.dumps(cuts), **costs,
    )  # fmt: skip
    tuned = replace(
        trial, name="finetune-0000-cut-1", stage="finetune", score=None, curve=None, macs=100, macs_ratio=0.1
    )
    dense = replace(trial, name="dense", stage="dense", score=None, curve=None, macs=1000, macs_ratio=1.0)
    paths = SweepPaths(tmp_path)
    write_records([trial, tuned, dense], paths.results)
    paths.config.write_text(dump_config(small_sweep))
    return tmp_path


def rankfront(*arguments):
    done = subprocess.run(
        [RANKFRONT, "front", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_answers_in_every_format(directory):
    code, out, _ = rankfront(directory, "--format", "json")
    assert code == 0
    assert json.loads(out) == read_front(directory).as_json()
    code, out, _ = rankfront(directory, "--knee", "--max-macs", "10%", "--format", "csv")
    assert [row["name"] for row in csv.DictReader(io.StringIO(out))] == ["dense", "finetune-0000-cut-1"]
    code, out, _ = rankfront(directory, "--min-accuracy", "80%")
    assert (code, "finetune-0000-cut-1" in out, "best, smallest, knee" in out, "trial-0000" in out) == (
        0,
        True,
        True,
        False,
    )
    code, out, err = rankfront(directory, "--max-macs", "99")
    assert (code, out) == (1, "")
    assert err.startswith("Nothing matches: none of the 1 finalists has at most 99 MACs; the fewest MACs are 100")
    code, _, err = rankfront(directory, "--max-macs", "0.5")
    assert (code, "must be a count from 1" in err) == (2, True)


def test_a_front_is_read_whatever_the_recorded_configuration_names(directory):
    SweepPaths(directory).config.write_text("search_space: gone:space")
    assert read_front(directory).finalists
