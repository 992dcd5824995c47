"""Trials that enter the study by other ways than the sampler's: curve points, an earlier sweep's results, a user's points.

Each way can be taken again on a study that goes on, whenever it was cut off: what is there is not added twice.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.choices import check_points, contains, offered
from orchestrator.config import SearchConfig
from orchestrator.constraints import violations
from orchestrator.curves import CurvePoint
from orchestrator.pareto import Points, non_dominated
from orchestrator.paths import SweepPaths
from orchestrator.study import (
    ADDED,
    CURVE,
    LATENCY,
    MACS_RATIO,
    PARAMS_RATIO,
    FeasibleTrials,
    constraints_of,
    recorded_trials,
    run_name,
)
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from search_spaces import SearchSpace

ALL_CUTS_UP_TO = 1000
WARM_START = "warm_start"
SOURCE = "source"
_SOURCE_NUMBER = "source_number"
_DIRECTORY = "directory"
_FIRST_POINT = "first_point"

_log = logging.getLogger(__name__)


def check_search(search: SearchConfig, space: "SearchSpace") -> None:
    """Check the user's first points and the earlier sweep, without a study; raises ConfigError."""
    check_points(space, search.first_points or ())
    if search.warm_start is not None:
        _earlier_trials(search.warm_start)


def begin(study: optuna.Study, space: "SearchSpace", search: SearchConfig) -> None:
    """Add an earlier sweep's results and enqueue the user's first points, where that is not done yet.

    Raises ConfigError where the earlier sweep cannot be read.
    """
    if search.warm_start is not None:
        warm_start(study, space, search.warm_start)
    enqueue_first_points(study, search.first_points or ())


def enqueue_first_points(study: optuna.Study, points: Sequence[dict[str, Any]]) -> None:
    """Enqueue each point once in the life of the study; the sampler fills in the parameters that it leaves out."""
    there = {trial.user_attrs.get(_FIRST_POINT) for trial in study.get_trials(deepcopy=False)}
    for place, point in enumerate(points):
        if place not in there:
            study.enqueue_trial(point, user_attrs={_FIRST_POINT: place})


class CurveTrials:
    """Adds the points of complete trials' curves to `study`, of which each trial is read once.

    A point becomes a complete trial with its source's parameters, those named in its settings replaced; its values are its
    score and MACs, its attribute `source` the source's run. Left out are points that the search space could not have
    chosen, with a setting that is no number in the range of a parameter of that name, those with values that are not
    finite, and the source's own cut, which is told already. A parameter that has the name of a setting is taken to be that
    setting.

    From ALL_CUTS_UP_TO trials on, only points that no feasible trial of the study dominates are added: a proposal takes as
    long as the study is large, and dominated points teach the sampler what many others did.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._num_read = 0
        self._numbers: dict[str, list[int]] = defaultdict(list)  # of the trials that are the run of this name
        self._told: dict[str, set[str]] = defaultdict(set)  # by the source's name: parameters of what was added
        self._feasible = FeasibleTrials()

    def add(self, curves: Mapping[int, Sequence[CurvePoint]]) -> int:
        """Add points of trials, by the numbers of their runs' names; returns how many were new."""
        trials = self._study.get_trials(deepcopy=False)
        self._read(trials)
        best = np.empty((0, 2))
        if len(trials) >= ALL_CUTS_UP_TO:
            best = self._feasible.points[non_dominated(self._feasible.points)]
        num_added = 0
        for number, points in curves.items():
            name = run_name(trials[number])
            # one that was cut off was asked for again, and may have had parameters missing
            source = max((trials[number] for number in self._numbers[name]), key=_completeness)
            there = self._told[name] | {_key(source.params)}
            for point in points:
                assert point.trial == name, (point.trial, name)
                if _is_dominated(point, best):
                    continue
                trial = _curve_trial(self._study, source, point)
                if trial is not None and (key := _key(trial.params)) not in there:
                    there.add(key)
                    self._study.add_trial(trial)
                    num_added += 1
        return num_added

    def _read(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials[self._num_read :]:
            if ADDED not in trial.user_attrs:
                self._numbers[run_name(trial)].append(trial.number)
            elif trial.user_attrs[ADDED] == CURVE:
                self._told[trial.user_attrs[SOURCE]].add(_key(trial.params))
        self._num_read = len(trials)
        self._feasible.read(trials)


def _completeness(trial: FrozenTrial) -> tuple[bool, int]:
    return trial.state == TrialState.COMPLETE, trial.number


def _is_dominated(point: CurvePoint, front: Points) -> bool:
    own = np.array((-point.score, point.macs))
    return bool(((front <= own).all(axis=1) & (front < own).any(axis=1)).any())


def _curve_trial(study: optuna.Study, source: FrozenTrial, point: CurvePoint) -> FrozenTrial | None:
    for key, value in point.settings.items():
        distribution = source.distributions.get(key)
        if not isinstance(distribution, FloatDistribution | IntDistribution) or not contains(distribution, value):
            return None
    attributes = {
        ADDED: CURVE,
        SOURCE: run_name(source),
        MACS_RATIO: point.macs_ratio,
        PARAMS_RATIO: point.params_ratio,
        LATENCY: point.latency_ms,
    }
    attributes = {key: value for key, value in attributes.items() if value is not None}
    return _added_trial(
        study, {**source.params, **point.settings}, source.distributions, [point.score, point.macs], attributes
    )


def _added_trial(
    study: optuna.Study,
    params: dict[str, Any],
    distributions: dict[str, Any],
    values: list[float],
    attributes: dict[str, Any],
) -> FrozenTrial | None:
    """Return a complete trial, None where a value, or a figure that the study's constraints limit, is not known."""
    figures = (attributes.get(key) for key in (MACS_RATIO, PARAMS_RATIO, LATENCY))
    limits = violations(constraints_of(study), values[0], *figures)
    if limits is None or not all(math.isfinite(value) for value in values):
        return None
    return create_trial(
        params=params, distributions=distributions, values=values, user_attrs=attributes, constraints=limits
    )


def _key(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def warm_start(study: optuna.Study, space: "SearchSpace", directory: str) -> None:
    """Add the complete trials of the earlier sweep in `directory`, curve points too, once in the life of the study.

    Their attribute `source` is that sweep's name. Trials whose parameters are not a choice of this search space, and those
    without a figure that is limited here, are left out; a latency that was foreseen elsewhere is none of here. Raises
    ConfigError where there is no readable study.
    """
    if study.user_attrs.get(WARM_START) == directory:
        return
    name, earlier = _earlier_trials(directory)
    there = {
        trial.user_attrs[_SOURCE_NUMBER]
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(ADDED) == WARM_START and trial.user_attrs.get(_DIRECTORY) == directory
    }
    skipped = 0
    for trial in earlier:
        fitted = _fitted(study, space, trial, {SOURCE: name, _DIRECTORY: directory})
        skipped += fitted is None
        if fitted is not None and trial.number not in there:
            study.add_trial(fitted)
    study.set_user_attr(WARM_START, directory)
    _log.info("%d trials of %s warm-start this sweep", len(earlier) - skipped, name)
    if skipped:
        _log.warning("%d of %d trials of %s do not fit this search and are left out", skipped, len(earlier), name)


def _fitted(
    study: optuna.Study, space: "SearchSpace", trial: FrozenTrial, origin: dict[str, str]
) -> FrozenTrial | None:
    try:
        distributions = offered(space, trial.params)
    except ConfigError:
        return None
    if distributions.keys() != trial.params.keys():
        return None
    if not all(contains(distributions[key], value) for key, value in trial.params.items()):
        return None
    ratios = {
        key: value for key in (MACS_RATIO, PARAMS_RATIO) if isinstance(value := trial.user_attrs.get(key), int | float)
    }
    attributes = {ADDED: WARM_START, **origin, _SOURCE_NUMBER: trial.number, **ratios}
    attributes[CURVE] = trial.user_attrs.get(ADDED) == CURVE
    return _added_trial(study, trial.params, distributions, trial.values, attributes)


def _earlier_trials(directory: str) -> tuple[str, list[FrozenTrial]]:
    """Return the name and the complete trials of the sweep in `directory`, of which nothing is changed."""
    journal = Path(directory)
    try:
        journal = SweepPaths.of(Path(directory)).study
        name, trials = recorded_trials(journal)
    except Exception as error:  # Optuna raises what it meets in a damaged file
        rule = "must be the output directory of an earlier sweep"
        raise ConfigError([("search.warm_start", f"{rule}, but {journal} is not readable: {error}")]) from error
    return name, [trial for trial in trials if trial.state == TrialState.COMPLETE]
