"""Curves in the table: candidates of the final stage, and the rules that end a search."""

import json
from dataclasses import replace

import pytest

from orchestrator.config import FinetuneConfig, StopConfig
from orchestrator.curves import candidates, curve_table, dense_costs, final_curve, trial_of
from orchestrator.finalists import pick_finalists
from orchestrator.front import sweep_front
from orchestrator.jobs import finetune_job
from orchestrator.objectives import front_hypervolume, objectives, saves
from orchestrator.records import RunRecord
from orchestrator.stop_rules import StopRules


def cut(epoch, settings, macs, score):
    return {"epoch": epoch, "settings": settings, "macs": macs, "params": macs, "score": score}


def trial(number=0, cuts=(), macs=400, score=0.8, state="COMPLETE", **more):
    """A trial of two epochs on a dense network of 1,000 MACs and parameters."""
    return RunRecord(
        f"trial-{number:04d}", "trial", state, "id", "pretrain-channel", number, json.dumps({"energy": 0.1, "strength": 1}),
        energy=0.1, epochs=2, val_accuracy=score - 0.1, score=score, macs=macs, macs_ratio=macs / 1000, params=macs,
        params_ratio=macs / 1000, layers=["0"], ranks=[3], curve=json.dumps(list(cuts)) if cuts else None, duration_s=60.0,
        **more,
    )  # fmt: skip


CUTS = (
    cut(1, {}, 700, 0.3),
    cut(1, {"energy": 0.5}, 100, 0.1),
    cut(2, {}, 400, 0.8),
    cut(2, {"energy": 0.05}, 600, 0.85),
    cut(2, {"energy": 0.5}, 200, 0.75),
)


def test_a_trial_brings_each_cut_of_its_last_epoch_as_a_candidate():
    found = candidates([trial(3, CUTS)])
    assert [row.name for row in found] == ["trial-0003", "trial-0003-cut-1", "trial-0003-cut-2"]
    first, second = found[1], found[2]
    assert (first.macs, first.macs_ratio, first.params_ratio) == (600, pytest.approx(0.6), pytest.approx(0.6))
    assert (first.val_accuracy, first.score, first.energy) == (None, 0.85, 0.05)
    assert json.loads(second.settings) == {"energy": 0.5, "strength": 1}
    assert second.ranks is None
    assert {trial_of(row.name) for row in found} == {"trial-0003"}
    assert objectives(found)[:, 0].tolist() == [-0.8, -0.85, -0.75]  # scores, not accuracies after the cut


def test_a_trial_that_was_stopped_or_failed_brings_none():
    stopped = [trial(0, CUTS[:2], state="PRUNED"), trial(1, CUTS, state="FAIL")]
    assert candidates(stopped) == []
    assert final_curve(stopped[0]) == []
    assert pick_finalists(stopped, FinetuneConfig(3)) == []


def test_a_finalist_is_fine_tuned_from_its_trial_with_the_settings_of_its_cut():
    (pick,) = pick_finalists([trial(3, [*CUTS[:4], cut(2, {"energy": 0.5}, 200, 0.9)])], FinetuneConfig(9))
    job = finetune_job(pick)
    assert (job.name, job.source, job.trial_number) == ("finetune-0003-cut-2", "trial-0003", 3)
    assert job.settings == {"energy": 0.5, "strength": 1}


def test_what_has_lost_too_much_is_not_fine_tuned():
    cuts = [*CUTS[:3], cut(2, {"energy": 0.5}, 200, 0.3)]
    assert [pick.macs for pick in pick_finalists([trial(0, cuts)], FinetuneConfig(9))] == [400]
    everyone = FinetuneConfig(9, min_relative_score=0.3)
    assert sorted(pick.macs for pick in pick_finalists([trial(0, cuts)], everyone)) == [200, 400]


def test_the_front_shows_finalists_of_cuts_with_their_scores_before():
    tuned = RunRecord(
        "finetune-0003-cut-2", "finetune", "COMPLETE", "id", "trial-0003", 3, val_accuracy=0.95, test_accuracy=0.94,
        macs=200, macs_ratio=0.2, params=200, params_ratio=0.2,
    )  # fmt: skip
    front = sweep_front([trial(3, CUTS), tuned])
    assert [point.name for point in front.front] == ["trial-0003-cut-2", "trial-0003", "trial-0003-cut-1"]
    assert [point.name for point in front.finalists] == ["finetune-0003-cut-2"]
    assert front.before["finetune-0003-cut-2"].score == 0.75
    assert front.hypervolume == pytest.approx(0.8 * 0.75 + 0.6 * 0.05 + 0.4 * 0.05)


def test_a_table_for_mlflow_has_a_row_for_each_cut():
    table = curve_table(json.dumps(CUTS))
    assert table["columns"] == ["epoch", "settings", "macs", "params", "score", "latency_ms"]
    assert table["data"][1] == [1, '{"energy": 0.5}', 100, 100, 0.1, None]
    assert len(table["data"]) == 5


class TestStopRules:
    TRIALS = (trial(0, CUTS), trial(1), trial(2))

    def test_none_without_a_limit(self):
        assert StopRules(StopConfig(), 8).reason(self.TRIALS, 1e9) is None

    @pytest.mark.parametrize(("elapsed_s", "stops"), [(7199, False), (7200, True)])
    def test_wall_time(self, elapsed_s, stops):
        assert (StopRules(StopConfig(hours=2), 1).reason([], elapsed_s) is not None) is stops

    @pytest.mark.parametrize(("cores", "stops"), [(1, False), (2, True)])
    def test_core_hours_count_every_core_of_a_trial(self, cores, stops):
        reason = StopRules(StopConfig(core_hours=0.1), cores).reason(self.TRIALS, 0)  # three minutes on each core
        assert (reason == "stop.core_hours: the trials took 0.1 core-hours of 0.1") is stops

    @pytest.mark.parametrize(
        ("accuracy", "macs", "stops"), [(0.85, 0.6, True), (0.86, 0.6, False), (0.85, 0.5, False), (0.75, 0.2, True)]
    )
    def test_a_target_is_met_by_any_cut(self, accuracy, macs, stops):
        config = StopConfig(target_accuracy=accuracy, target_macs_ratio=macs)
        assert (StopRules(config, 1).reason(self.TRIALS, 0) is not None) is stops

    @pytest.mark.parametrize(("patience", "stops"), [(1, True), (2, True), (3, False)])
    def test_a_plateau_is_when_the_last_trials_add_nothing(self, patience, stops):
        """Trials 1 and 2 repeat a point of trial 0."""
        assert front_hypervolume(candidates(self.TRIALS)) == front_hypervolume(candidates(self.TRIALS[:1]))
        assert (StopRules(StopConfig(plateau_trials=patience), 1).reason(self.TRIALS, 0) is not None) is stops
        assert StopRules(StopConfig(plateau_trials=patience), 1).reason([trial(0), trial(1), trial(2, CUTS)], 0) is None

    def test_they_are_the_same_whether_asked_after_each_trial_or_once(self):
        config = StopConfig(plateau_trials=1)
        rules = StopRules(config, 1)
        trials = [trial(0), trial(1, CUTS), trial(2), trial(3)]
        for count in range(len(trials) + 1):
            assert rules.reason(trials[:count], 0) == StopRules(config, 1).reason(trials[:count], 0), count

    @pytest.mark.parametrize("given", [{"hours": 1}, {"core_hours": 1}, {"target_accuracy": 1}, {"plateau_trials": 1}])
    def test_whether_there_is_a_rule(self, given):
        assert StopRules(StopConfig(**given), 1).any
        assert not StopRules(StopConfig(), 1).any


def test_the_uncut_network_is_no_finalist_whatever_its_ratios_are_rounded_to():
    """The dense costs of a record are quotients: of many, some come out a little too large."""
    for dense in range(10_000, 10_400):
        for macs in (dense // 3, dense // 7):
            run = replace(trial(0), macs=macs, macs_ratio=macs / dense, params=macs, params_ratio=macs / dense)
            assert dense_costs(run) == (dense, dense)
            whole = replace(run, curve=json.dumps([cut(2, {}, macs, 0.8), cut(2, {"energy": 0.01}, dense, 0.9)]))
            assert [saves(row) for row in candidates([whole])] == [True, False]
            assert [pick.macs for pick in pick_finalists([whole], FinetuneConfig(3))] == [macs]


def test_where_nothing_saves_the_uncut_network_is_fine_tuned():
    whole = trial(0, [cut(2, {}, 1000, 0.8)], macs=1000)
    assert [pick.macs for pick in pick_finalists([whole], FinetuneConfig(3))] == [1000]


@pytest.mark.parametrize(("num_scored", "nearest"), [(10**9, 900), (1000, 600), (100, 300)])
def test_one_finalist_is_the_cheapest_that_scores_cannot_tell_from_the_best(num_scored, nearest):
    """Two standard errors of 0.93 on 1,000 images are 0.016: 0.92 is as good, 0.91 is not."""
    cuts = [cut(2, {"energy": score}, macs, score) for macs, score in ((300, 0.91), (600, 0.92), (900, 0.93))]
    picks = pick_finalists(
        [trial(0, [cut(2, {}, 100, 0.5), *cuts], macs=100, score=0.5)], FinetuneConfig(3), None, num_scored
    )
    assert picks[0].macs == nearest
    assert len(picks) == 3
