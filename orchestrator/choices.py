"""What a search space chooses: its call made safe, tried before anything runs, and compared with given parameters."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial
from pydantic import TypeAdapter, ValidationError

from orchestrator.study import DIRECTIONS
from trainers.config import MethodConfig, TrainingConfig, apply_settings, as_record
from trainers.errors import ConfigError
from trainers.methods import pretraining
from trainers.rules import unknown_name

if TYPE_CHECKING:
    from search_spaces import SearchSpace

_TRAINING, _METHOD = TypeAdapter(TrainingConfig), TypeAdapter(MethodConfig)
_PROBES = 200
_COMPLETIONS = 100


def choose(space: "SearchSpace", trial: optuna.Trial) -> tuple[dict[str, Any], MethodConfig]:
    """Call the space; returns its settings as plain values and the method they make. Raises ConfigError."""
    try:
        settings = json.loads(json.dumps(space(trial), default=_plain_number))
        training, method = apply_settings(settings, TrainingConfig(), MethodConfig())
        for section, adapter in ((training, _TRAINING), (method, _METHOD)):  # types too: 64.0 is no batch size
            adapter.validate_json(json.dumps(as_record(section)), strict=True)
    except ConfigError as error:
        raise ConfigError([(f"search_space: {field}", text) for field, text in error.problems]) from error
    except ValidationError as error:
        wrong = [
            (f"search_space: {item['loc'][0]}", f"{item['msg']}, but got {item['input']!r}") for item in error.errors()
        ]
        raise ConfigError(wrong) from error
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        raise ConfigError([("search_space", f"must return settings for any trial, but raised {error!r}")]) from error
    return settings, method


def _plain_number(value: Any) -> Any:
    """Return a numpy number as Python's, for JSON."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a setting must be a number, string or boolean, but is {value!r}")


def probe_search_space(space: "SearchSpace") -> list[MethodConfig]:
    """Call the space on random draws; returns the forms of stage 1 that its choices start from, in order of appearance.

    Raises ConfigError where it fails or gives a setting that does not exist or breaks a rule.
    """
    study = optuna.create_study(directions=DIRECTIONS, sampler=RandomSampler(seed=0))
    found: dict[MethodConfig, None] = {}
    for _ in range(_PROBES):
        found[pretraining(choose(space, study.ask())[1])] = None
    return list(found)


class _Fixed(RandomSampler):
    """Gives a point's values wherever the distribution that is offered contains them, random ones elsewhere."""

    def __init__(self, point: dict[str, Any], seed: int) -> None:
        super().__init__(seed=seed)
        self._point = point

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = self._point.get(param_name)
        if param_name in self._point and contains(param_distribution, value):
            return value
        return super().sample_independent(study, trial, param_name, param_distribution)


def offered(space: "SearchSpace", point: dict[str, Any], seed: int = 0) -> dict[str, BaseDistribution]:
    """Return the distributions that the space suggests from where its parameters have the point's values.

    Parameters that the point leaves out, or whose values are out of range, are drawn at random. Raises ConfigError where the
    space refuses the choice.
    """
    trial = optuna.create_study(directions=DIRECTIONS, sampler=_Fixed(point, seed)).ask()
    choose(space, trial)
    return trial.distributions


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a parameter of that distribution can have that value; no text or boolean is a number."""
    if not isinstance(distribution, CategoricalDistribution) and (
        isinstance(value, bool) or not isinstance(value, int | float)
    ):
        return False
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:  # no such category; not a number
        return False


def check_points(space: "SearchSpace", points: Sequence[dict[str, Any]]) -> None:
    """Check a user's points; raises ConfigError with all that is wrong with any of them.

    Optuna itself only warns of a value that is out of range, and then uses it; it ignores a name that it does not know.
    """
    found = [
        (f"search.first_points[{place}]{name and '.' + name}", text)
        for place, point in enumerate(points)
        for name, text in _problems(space, point)
    ]
    if found:
        raise ConfigError(found)


def _problems(space: "SearchSpace", point: dict[str, Any]) -> list[tuple[str, str]]:
    """Complete the point at random, often: a parameter must be suggested, and contain its value, whatever the rest is."""
    draws = []
    for seed in range(_COMPLETIONS):
        try:
            draws.append(offered(space, point, seed))
        except ConfigError as error:
            return [("", text if not name else f"{name}: {text}") for name, text in error.problems]
        if draws[-1].keys() <= point.keys():  # nothing is left to chance
            break
    known = {name: None for draw in draws for name in draw}
    problems = [(name, _problem(name, value, draws, list(known))) for name, value in point.items()]
    return [(name, text) for name, text in problems if text is not None]


def _problem(name: str, value: Any, draws: list[dict[str, BaseDistribution]], known: list[str]) -> str | None:
    if name not in known:
        return unknown_name("parameter of this choice", name, known)
    if any(name not in draw for draw in draws):
        return "is a parameter of some choices only; give those that lead to it too"
    outside = next((draw[name] for draw in draws if not contains(draw[name], value)), None)
    return None if outside is None else f"must be in {_range(outside)}, but got {value!r}"


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"({', '.join(map(repr, distribution.choices))})"
    return f"[{getattr(distribution, 'low', '')}, {getattr(distribution, 'high', '')}]"
