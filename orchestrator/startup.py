"""Random draws first: a sampler that models results waits for ten runs, not for ten points of two runs' curves."""

from optuna import Study
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.drawn_by import DrawnBy
from orchestrator.study import ADDED, CURVE

# as many as Optuna's samplers wait for, which count every trial of the study
NUM_RUNS = 10


class RandomFirst(DrawnBy):
    """Draws at random until NUM_RUNS trials that are not curve points have ended complete or pruned, then as `model`."""

    def __init__(self, model: BaseSampler, seed: int) -> None:
        super().__init__(model)
        self._random, self._started = RandomSampler(seed=seed), False

    def _source(self, study: Study, trial: FrozenTrial) -> tuple[BaseSampler, Study]:
        if not self._started:
            ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            self._started = sum(not _is_curve_point(trial) for trial in ended) >= NUM_RUNS
        return self._sampler if self._started else self._random, study


def _is_curve_point(trial: FrozenTrial) -> bool:
    """Of this sweep, or of an earlier one that warm-starts it."""
    return trial.user_attrs.get(ADDED) == CURVE or bool(trial.user_attrs.get(CURVE, False))
