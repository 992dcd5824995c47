"""Optuna's study as a Ray Tune searcher: Tune asks it for trials, and the ledger's callback tells it how they end.

Ray's own OptunaSearch leaves a trial with NaN values RUNNING for ever and tells a stopped one COMPLETE; what this one
tells is in `orchestrator.study`.
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from orchestrator.added_trials import CurveTrials
from orchestrator.background import Background
from orchestrator.choices import choose
from orchestrator.curves import final_curve
from orchestrator.records import RunRecord
from orchestrator.study import REFUSED, RUN, START, begun_trials, name_of, take_up, tell
from trainers.errors import ConfigError, SweepError

if TYPE_CHECKING:
    from search_spaces import SearchSpace

_MAX_REFUSALS = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Proposal:
    """A trial of the study that is to be run: its number there, its run's name, settings and start (None: stage 1)."""

    number: int
    name: str
    settings: dict[str, Any]
    source: str | None


def _proposal(trial: optuna.Trial, settings: dict[str, Any]) -> _Proposal:
    attributes = trial.user_attrs
    return _Proposal(trial.number, attributes[RUN], settings, attributes.get(START))


class StudySearcher(Searcher):
    """Asks the study for each of Tune's trials. A suggestion is {"name", "number", "settings", "source"} of a run.

    Whenever none is left, `ask_batch` trials are asked for at once, but never more than `limit` in all, the number that
    Tune will start. With `ahead`, that is as soon as the last one is taken, so that no worker waits for a proposal; each
    time that one did wait, another one more is kept ready from then on, at most `ahead`. As soon as `until` gives a reason,
    no further trial is suggested, but those that were cut off after their runs, by their names, `has_begun`. `source` says
    which run's network new settings are to start from, None for stage 1's. `background` runs all that has to do with the
    study.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: "SearchSpace",
        ask_batch: int = 1,
        limit: int | None = None,
        until: Callable[[], str | None] | None = None,
        source: Callable[[dict[str, Any]], str | None] = lambda _: None,
        *,
        has_begun: Callable[[str], bool] = lambda _: False,
        background: Background | None = None,
        ahead: int = 0,
    ) -> None:
        super().__init__()
        self._until, self._source, self._has_begun = until, source, has_begun
        self._study, self._space, self._curves = study, space, CurveTrials(study)
        self._ask_batch, self._limit, self._ahead = ask_batch, limit, ahead
        self._ready = min(1, ahead)  # so many are to be asked for when one is taken; more would know fewer results
        self._background = background or Background(threaded=False)
        self._asked, self._ended, self._any_finished = 0, False, False
        self._queue: deque[Future[_Proposal | None]] = deque()
        self._returned: deque[_Proposal] = deque()
        self._taken: dict[str, _Proposal] = {}  # by Tune's id of the trial

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that is not used."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's call: objectives and directions are the study's."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial: one that was cut off or is the user's own, if any is enqueued, else a new one.

        Searcher.FINISHED, Tune's word for the end of a search, where a stop rule is met.

        A draw for which the space raises is told FAIL and another one is asked for; SweepError after a hundred in a row.
        """
        found = self._returned.popleft() if self._returned else self._next()
        if found is None:
            return Searcher.FINISHED
        self._taken[trial_id] = found
        number = int(found.name.rpartition("-")[2])
        return {"name": found.name, "number": number, "settings": found.settings, "source": found.source}

    def _next(self) -> _Proposal | None:
        """The next new one, None where a stop rule is met."""
        if self._until is not None:
            self._background.wait()  # the trial that has just ended may have met the rule
        while self._queue or self._ask_for_batch():
            if self._any_finished and not self._queue[0].done():
                self._ready = min(self._ready + 1, self._ahead)
            found = self._queue.popleft().result()
            if found is None:
                break
            if self._ended and not self._has_begun(found.name):  # it was asked for ahead, and is not started any more
                continue
            while len(self._queue) < self._ready and self._ask_for_batch():
                pass
            return found
        return None

    def _ask_for_batch(self) -> int:
        """Ask for the next ones, as many as are returned."""
        left = self._ask_batch if self._limit is None else min(self._ask_batch, self._limit - self._asked)
        for _ in range(left):
            self._queue.append(self._background.submit(self._ask_unless_ended))
        self._asked += left
        return left

    def _ask_unless_ended(self) -> _Proposal | None:
        self._look_at_rules()
        if not self._ended:
            return self._ask()
        if not (cut_off := begun_trials(self._study, self._has_begun)):
            return None
        trial = take_up(self._study, cut_off[0])
        return _proposal(trial, choose(self._space, trial)[0])

    def _look_at_rules(self) -> None:
        if self._until is not None and not self._ended and (reason := self._until()) is not None:
            _log.warning("no further trial is started, by %s", reason)
            self._ended = True

    def _ask(self) -> _Proposal:
        refusal = None
        for _ in range(_MAX_REFUSALS):
            trial = self._study.ask()
            try:
                settings = choose(self._space, trial)[0]
            except ConfigError as error:
                refusal = error
                _log.warning("trial %d is left out: %s", trial.number, error)
                trial.set_user_attr(REFUSED, str(error))
                self._study.tell(trial.number, state=TrialState.FAIL)
            else:
                if RUN not in trial.user_attrs:  # else it was cut off: it goes on as it began
                    if (source := self._source(settings)) is not None:
                        trial.set_user_attr(START, source)
                    trial.set_user_attr(RUN, name_of(trial.number))  # last: with it the proposal is whole
                return _proposal(trial, settings)
        raise SweepError(f"the search space must return settings, but refused {_MAX_REFUSALS} draws: {refusal}")

    def give_back(self, trial_id: str) -> None:
        """Let the run of `trial_id` be suggested once more, as the next one, even after a stop rule: it had begun."""
        self._returned.append(self._taken.pop(trial_id))

    @property
    def left(self) -> int:
        """How many runs are still to be suggested: those that were given back and, up to `limit`, new ones."""
        new = 0 if self._ended or self._limit is None else self._limit - self._asked + len(self._queue)
        return len(self._returned) + new

    def finish(self, trial_id: str, record: RunRecord) -> None:
        """Tell the study how the run of `trial_id` ended, and give it the other points of its curve."""
        self._any_finished = True
        tell(self._study, self._taken.pop(trial_id).number, record)
        if record.trial_number is not None and (points := final_curve(record)):
            self._curves.add({record.trial_number: points})
        self._look_at_rules()  # a trial that was asked for ahead is not started any more

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's own call is not used: it comes without what is needed to tell a finished trial from a stopped one."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is in its journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: see `reconcile`."""
