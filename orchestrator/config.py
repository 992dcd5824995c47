"""A sweep's configuration: one YAML file, read into typed dataclasses, all errors reported at once.

The sections that describe a training are `trainers.config`'s own; pydantic checks types and unknown keys, and the rules
that stand beside each field check values.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, core_schema

from orchestrator.yaml_source import YamlSource, parse_override
from search_spaces import FIRST_POINTS, find_search_space
from trainers.config import (
    CurveConfig,
    DataConfig,
    DistillationConfig,
    FactorizationConfig,
    LatencyConfig,
    ModelConfig,
    TrainingConfig,
    as_record,
)
from trainers.errors import ConfigError
from trainers.rules import Rule, Section, at_least, folder, greater_than, in_interval, one_of, unknown_name


def _search_space_problem(name: str) -> str | None:
    try:
        find_search_space(name)
    except ValueError as error:
        return str(error)
    return None


_LONGEST_NAME = 200  # a file system allows 255, and names are made longer


def _name_problem(name: str) -> str | None:
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        return f"must consist of letters, digits, '-', '_' and '.' (it names a folder), but got {name!r:.60}"
    if len(name.encode()) > _LONGEST_NAME:
        return f"must have at most {_LONGEST_NAME} bytes (it names a folder), but has {len(name.encode())}"
    return None


def _sampler_names() -> Collection[str]:
    from orchestrator.samplers import SAMPLERS

    return SAMPLERS.keys()


@dataclass(frozen=True)
class ConstraintsConfig(Section):
    """What a network must keep to; None: no limit. Ratios are to the dense network, the latency is the one foreseen.

    `min_accuracy` is on the accuracy that the search maximises: the score where a run has one, else `val_accuracy`.
    """

    max_macs_ratio: Annotated[float | None, greater_than(0)] = None
    max_params_ratio: Annotated[float | None, greater_than(0)] = None
    min_accuracy: Annotated[float | None, in_interval(0, 1, closed="[]")] = None
    max_latency_ms: Annotated[float | None, greater_than(0)] = None


@dataclass(frozen=True)
class SearchConfig(Section):
    """How many trials, how many at once, and where their settings come from.

    `sampler` is a name of `orchestrator.samplers.SAMPLERS`, `seed` is its seed. `ask_batch` proposals are asked for
    together: a wide cluster then waits once for all of them. `first_points` are tried first, each a mapping of the search
    space's parameters to values; the sampler fills in what is missing. None: those of `search_spaces.FIRST_POINTS`.
    `warm_start`, the output directory of an earlier sweep, gives the sampler that sweep's results, where they fit the
    search space. The sampler prefers what keeps to `constraints`. `continuation`: a trial goes on from the best finished
    trial's network where there is one (`orchestrator.continuation`), at most so many after each other; 0: every trial
    starts from stage 1.
    """

    num_trials: Annotated[int, at_least(1)] = 64
    max_concurrent: Annotated[int, at_least(1)] = 2
    seed: Annotated[int, in_interval(0, 2**32)] = 0
    sampler: Annotated[str, one_of("sampler", _sampler_names)] = "tpe"
    ask_batch: Annotated[int, at_least(1)] = 1
    first_points: tuple[dict[str, Any], ...] | None = None
    warm_start: Annotated[str | None, folder()] = None
    continuation: Annotated[int, at_least(0)] = 8
    constraints: ConstraintsConfig = field(default_factory=ConstraintsConfig)


@dataclass(frozen=True)
class FinetuneConfig(Section):
    """The final stage: at most `num_models` finalists, `epochs` each; `learning_rate` null means the trial's own.

    Each is fine-tuned `repeats` times, with seeds that follow each other; the front shows means and standard deviations.
    Candidates whose score is below `min_relative_score` of the best one's are left out: they do not get all of that back.
    What is kept of a run is its best epoch by validation accuracy, or the cut itself where training only makes it worse.
    `patience`: a run ends early once its validation accuracy has not risen for so many epochs; null: never.
    `distillation`: the finalists also learn from the full-rank network of stage 1 that they come from.
    """

    num_models: Annotated[int, at_least(1)] = 5
    epochs: Annotated[int, at_least(1)] = 20
    repeats: Annotated[int, at_least(1)] = 1
    patience: Annotated[int | None, at_least(1)] = None
    learning_rate: Annotated[float | None, greater_than(0)] = None
    min_relative_score: Annotated[float, in_interval(0, 1, closed="[]")] = 0.5
    distillation: DistillationConfig = field(default_factory=DistillationConfig)


@dataclass(frozen=True)
class SchedulerConfig(Section):
    """Early stopping of trials: `pareto_asha` (see `pareto_asha.ParetoASHA`), or `none`.

    Trials are judged by their curves after `grace_period` epochs (null: half of them) and each `reduction_factor` times
    as many; at each rung the best 1 / `reduction_factor` go on, and all that are on its front. A share of `exempt_share`
    is never stopped, and nobody is while fewer than `min_trials` have reached the rung.
    """

    name: Literal["pareto_asha", "none"] = "pareto_asha"
    grace_period: Annotated[int | None, at_least(1)] = None
    reduction_factor: Annotated[float, greater_than(1)] = 1.33
    exempt_share: Annotated[float, in_interval(0, 1, closed="[]")] = 0.1
    min_trials: Annotated[int, at_least(1)] = 4


@dataclass(frozen=True)
class StopConfig(Section):
    """When the search ends before `num_trials`: whichever is met first; running trials end as usual. null: no limit.

    `hours` of wall time since this start of the search, or `core_hours` of all trials' training; after `plateau_trials`
    trials in a row that raised the hypervolume by less than `plateau_tolerance` of itself in all; as soon as some network
    has `target_accuracy` with at most `target_macs_ratio` of the MACs.
    """

    hours: Annotated[float | None, greater_than(0)] = None
    core_hours: Annotated[float | None, greater_than(0)] = None
    plateau_trials: Annotated[int | None, at_least(1)] = None
    plateau_tolerance: Annotated[float, at_least(0)] = 1e-3
    target_accuracy: Annotated[float | None, in_interval(0, 1, closed="(]")] = None
    target_macs_ratio: Annotated[float, in_interval(0, 1, closed="(]")] = 1.0


def _gpus_problem(value: object) -> str | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return f"must be a number >= 0, or auto, but got {value!r}"
    if value > 1 and value != int(value):  # Ray has no fractions above one GPU
        return f"must be at most 1 or a whole number, but got {value}"
    return None


@dataclass(frozen=True)
class _WholeRule(Rule):
    """A rule that checks the type too, where pydantic's errors for each part of a union would be two."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return core_schema.no_info_plain_validator_function(self.check)


@dataclass(frozen=True)
class ResourcesConfig(Section):
    """What Ray reserves for each run; `gpus_per_trial` may be a fraction.

    `auto`: before the search one short training of each form is run on a GPU, and as many trials share a GPU as its memory
    then allows, at most `max_trials_per_gpu`.

    `trials_per_array` K > 1: up to K trials train in one process as one program (`trainers.arrays`), and share what is
    reserved for a run; `search.max_concurrent` says how many there are in all.

    `workers_per_trial` W > 1: every run (trials, stage 1, the final stage, the baseline) is trained by W workers, each of
    which reserves what is said here for a trial and takes its share of every batch (`trainers.distributed`).

    `share_stage_one`: networks of stage 1 are taken from, and left for, the other sweeps in the same folder.

    `max_retries`: a run whose worker was lost (killed, preempted, its node gone), or that ran out of memory, is started
    again from its last checkpoint, at most so many times; any other exception is a bug, and fails the run at once. With
    `accumulate_when_out_of_memory` each further try puts half as much of a batch into memory at a time and adds the
    gradients up to the same step: equal but for BatchNorm's statistics and dropout, and so no longer what the settings
    alone give. `checkpoints`: how many of a run are kept while it trains.
    """

    cpus_per_trial: Annotated[int, at_least(1)] = 1
    gpus_per_trial: Annotated[float | Literal["auto"], _WholeRule(_gpus_problem)] = 0.0
    max_trials_per_gpu: Annotated[int, at_least(1)] = 8
    trials_per_array: Annotated[int, in_interval(1, 256, closed="[]")] = 1
    workers_per_trial: Annotated[int, at_least(1)] = 1
    share_stage_one: bool = True
    max_retries: Annotated[int, at_least(0)] = 2
    accumulate_when_out_of_memory: bool = False
    checkpoints: Annotated[int, at_least(1)] = 2

    def problems(self) -> list[tuple[str, str]]:
        """`auto` measures trials that train by themselves, and workers of one trial talk by NCCL: a GPU for each."""
        found = []
        if self.trials_per_array > 1 and self.gpus_per_trial == "auto":
            text = f"must be 1 with gpus_per_trial: auto, but got {self.trials_per_array}; set gpus_per_trial: 1"
            found.append(("trials_per_array", text))
        if self.workers_per_trial > 1 and self.trials_per_array > 1:
            text = f"must be 1 with trials_per_array above 1, but got {self.workers_per_trial}; leave one of them out"
            found.append(("workers_per_trial", text))
        if self.workers_per_trial > 1 and self.gpus_per_trial not in (0, 1):
            text = f"must be 0 or 1 for each of several workers_per_trial, but got {self.gpus_per_trial}; set 1"
            found.append(("gpus_per_trial", text))
        return found

    @property
    def gpus(self) -> float:
        """`gpus_per_trial` as a number; `auto` has been measured by then (`packing.with_measured_share`)."""
        assert not isinstance(self.gpus_per_trial, str)
        return self.gpus_per_trial

    @property
    def cpus_per_run(self) -> int:
        """Those of all its workers."""
        return self.workers_per_trial * self.cpus_per_trial


@dataclass(frozen=True)
class TrackingConfig(Section):
    """What MLflow is given beside runs. `log_models`: each finalist as a model that can be loaded and served.
    `log_report`: the report of a finished sweep, which is also written into the output directory.
    """

    log_models: bool = True
    log_report: bool = True


@dataclass(frozen=True)
class SweepConfig(Section):
    """Everything that a sweep depends on."""

    name: Annotated[str, Rule(_name_problem)]
    model: ModelConfig
    data: DataConfig
    search_space: Annotated[str, Rule(_search_space_problem)] = "svd_training"
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    latency: LatencyConfig | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    curve: CurveConfig = field(default_factory=CurveConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def problems(self) -> list[tuple[str, str]]:
        """A limit on latency needs to know on what, a CUDA graph a GPU, and a worker images of each batch."""
        workers = self.resources.workers_per_trial
        if workers > 1 and self.training.step != "eager":
            text = f"must be eager with resources.workers_per_trial above 1, but got {self.training.step}"
            return [("training.step", text)]
        if self.training.batch_size < workers:
            text = f"must be at least resources.workers_per_trial ({workers}), but got {self.training.batch_size}"
            return [("training.batch_size", text)]
        if "graph" in self.training.step and self.resources.gpus_per_trial == 0:
            text = f"{self.training.step} needs resources.gpus_per_trial above 0; set that, or eager or compile"
            return [("training.step", text)]
        if self.search.constraints.max_latency_ms is not None and self.latency is None:
            text = (
                "must go with the section latency, which says of which engine and batch; add e.g. latency: {batch: 1}"
            )
            return [("search.constraints.max_latency_ms", text)]
        return []

    @property
    def num_arrays(self) -> int:
        """How many processes train `search.max_concurrent` trials: one each, or one for each array."""
        return -(-self.search.max_concurrent // self.resources.trials_per_array)

    @property
    def resolved_search(self) -> SearchConfig:
        """`search` with the search space's first points where it has none of its own."""
        if self.search.first_points is not None:
            return self.search
        return replace(self.search, first_points=FIRST_POINTS.get(self.search_space, ()))


@cache
def _adapter() -> TypeAdapter[SweepConfig]:
    return TypeAdapter(SweepConfig)  # building it takes longer than what only shows a sweep


def load_config(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a YAML file, put the overrides (`a.b=c`, the value in YAML) in, and check everything.

    Raises ConfigError with all problems; each starts with its path in the file and, where it stands there, its line.
    """
    source = YamlSource.read(path)
    for text in overrides:
        source.set(*parse_override(text))
    # through JSON: its strict mode takes mappings for dataclasses and lists for tuples, and nothing else for anything
    try:
        return _adapter().validate_json(source.as_json(), strict=True)
    except ValidationError as error:
        found = [problem for details in error.errors() for problem in _problems(details, source)]
        raise ConfigError(found) from None


def dump_config(config: SweepConfig) -> str:
    """Return the resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(as_record(config), sort_keys=False)


def _problems(details: ErrorDetails, source: YamlSource) -> list[tuple[str, str]]:
    """One pydantic error as (place, message) pairs: several where a section reported several."""
    path = tuple(str(part) for part in details["loc"])
    original = (details.get("ctx") or {}).get("error")
    if isinstance(original, ConfigError):
        return [(source.place((*path, name)), text) for name, text in original.problems]
    return [(source.place(path), _message(details, path, source))]


def _message(details: ErrorDetails, path: tuple[str, ...], source: YamlSource) -> str:
    kind, value = details["type"], details["input"]
    if kind == "unexpected_keyword_argument":
        return unknown_name("key", path[-1], _known_keys(path[:-1])) if path else "unknown key"
    if kind in ("missing", "missing_argument"):
        return f"must be given; add it, e.g. `{path[-1]}: ...`"
    if kind == "value_error":
        return str(details["msg"]).removeprefix("Value error, ")
    if kind == "dataclass_type":
        return f"must be a section of settings (key: value), but got {value!r}"
    return f"{details['msg'][0].lower()}{details['msg'][1:]}, but got {value!r}".replace("input should be", "must be")


def _known_keys(section: tuple[str, ...]) -> list[str]:
    node: Any = SweepConfig
    for name in section:
        kind = node.__dataclass_fields__[name].type
        node = next(part for part in (kind, *get_args(kind)) if hasattr(part, "__dataclass_fields__"))  # of `X | None`
    return list(node.__dataclass_fields__)
