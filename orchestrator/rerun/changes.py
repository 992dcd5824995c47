"""What is otherwise here and now than when a sweep was recorded: settings, data, versions, hardware, code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import SweepConfig
from orchestrator.jobs import Job, job_configs, job_epochs
from orchestrator.output import differences, flat_settings, flatten
from orchestrator.report.sweep import Sweep
from trainers.config import as_record
from trainers.data import ImageData
from trainers.saved_model import SavedModel

NOT_RECORDED = "not recorded"
_MOST_FILES = 3
_FILE_SETS = ("parquet", "imagefolder")  # whose folder holds their own files alone


@dataclass(frozen=True)
class Change:
    """One thing that differs; `input`: without it the record cannot be had again, whatever the machine."""

    what: str
    recorded: object
    here: object
    input: bool = False


def setting_changes(sweep: Sweep, config: SweepConfig) -> list[Change]:
    """Return the settings of the sweep that `config`, its own with overrides, changes."""
    differ = differences(flat_settings(sweep.config), flat_settings(config))
    return [Change(key, there, here) for key, (there, here) in differ.items()]


def run_changes(saved: SavedModel | None, job: Job, config: SweepConfig, overridden: list[Change]) -> list[Change]:
    """Return what the job trains with otherwise than the recorded run did, and the overrides that it knows nothing of.

    Unlike `setting_changes`, it finds a config.yaml that was edited after the run.
    """
    if saved is None:
        return overridden
    there, here = _trained_with(saved.config), _settings_of(saved, job, config)
    found = {key: Change(key, there.get(key), here[key]) for key in here if there.get(key) != here[key]}
    for change in overridden:
        idle = change.what in there and change.what not in found
        here_too = f"{change.here} (no effect: the run's own settings name it)" if idle else change.here
        found[change.what] = Change(change.what, change.recorded, here_too)
    return list(found.values())


def _trained_with(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("epochs", "training", "method", "model", "factorization", "curve", "recovery", "distillation", "patience")
    return flatten({key: record[key] for key in keys if key in record})


def _settings_of(saved: SavedModel, job: Job, config: SweepConfig) -> dict[str, Any]:
    training, method = job_configs(job, config)
    settings = {
        "training": {
            key: value for key, value in as_record(training).items() if key not in ("epochs", "pretrain_epochs")
        },
        "epochs": job_epochs(job, config),
        "model": {**saved.config["model"], "model": as_record(config.model)},
    }
    if job.stage in ("trial", "finetune"):
        settings["method"] = as_record(method)
    if job.stage == "finetune":
        settings["patience"] = config.finetune.patience
    sections = {
        "factorization": config.factorization,
        "curve": config.curve,
        "recovery": config.curve,
        "distillation": config.finetune.distillation,
    }
    settings |= {key: as_record(section) for key, section in sections.items() if key in saved.config}
    return flatten(settings)


def data_changes(sweep: Sweep, saved: SavedModel | None, data: ImageData, test: ImageData | None) -> list[Change]:
    """Return what of the data, by its digests, is not what the sweep read, and files newer than the record."""
    recorded = sweep.environment.get("data", {})
    found = []
    for split, here in (("train", data), ("test", test)):
        if here is not None and split in recorded:
            parts = here.fingerprints()
            found += [
                Change(f"{split} data: {part}", recorded[split].get(part), parts[part], input=True)
                for part in parts
                if recorded[split].get(part) != parts[part]
            ]
    digest = None if saved is None else saved.config["data"]
    if not found and digest is not None and digest != data.digest():  # a record without digests of all pixels
        found.append(Change("train data", digest, data.digest(), input=True))
    if found and (newer := _newer_files(sweep)):
        found.append(Change("data files written since", "", ", ".join(newer)))
    return found


def _newer_files(sweep: Sweep) -> list[str]:
    config, environment = sweep.config.data, sweep.paths.environment
    if config.name not in _FILE_SETS or not environment.exists():
        return []
    since, root = environment.stat().st_mtime, Path(config.root).expanduser()
    newer = sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.stat().st_mtime > since
    )
    return newer if len(newer) <= _MOST_FILES else [*newer[:_MOST_FILES], f"{len(newer) - _MOST_FILES} more"]


def environment_changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Change]:
    """Compare two results of `provenance.environment`, of which the recorded one may be empty or older."""
    return [
        Change(what, recorded, found)
        for what, (recorded, found) in _environment_pairs(there, here).items()
        if recorded != found
    ]


def _environment_pairs(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    pairs: dict[str, tuple[object, object]] = {
        "python": (there.get("python", NOT_RECORDED), here["python"]),
        "platform": (there.get("platform", NOT_RECORDED), here["platform"]),
    }
    packages = there.get("packages", {})
    for name in sorted({*packages, *here["packages"]}):
        pairs[name] = (packages.get(name, NOT_RECORDED), here["packages"].get(name, "not installed"))
    hardware = there.get("hardware", {})
    pairs["cpu"] = (hardware.get("cpu", NOT_RECORDED), here["hardware"]["cpu"])
    for key in ("cpu_capability", "gpus"):
        if key in hardware:
            pairs[key] = (hardware[key], here["hardware"][key])
    git_there, git_here = (found.get("git") or {} for found in (there, here))
    missing = "no repository" if "git" in there else NOT_RECORDED
    for what, key in (("git commit", "commit"), ("uncommitted changes", "dirty")):
        pairs[what] = (git_there.get(key, missing), git_here.get(key, "no repository"))
    return pairs


def why_not_exact(changes: list[Change], config: SweepConfig) -> str | None:
    """Return why equal bits cannot be asked for here; None where they can: the same CPU, and no GPU."""
    if config.resources.gpus_per_trial != 0:
        return "it trains on a GPU"
    if config.resources.trials_per_array > 1:
        return "resources.trials_per_array above 1 sums in another order"
    if config.resources.workers_per_trial > 1:
        return "resources.workers_per_trial above 1 sums in another order"
    names = {change.what for change in changes}
    for key, text in (
        ("cpu", "the CPU is another"),
        ("cpu_capability", "torch uses other kernels"),
        ("resources.cpus_per_trial", "it trains with another number of threads"),
        ("resources.gpus_per_trial", "it was recorded on a GPU"),
        ("resources.trials_per_array", "it was recorded in an array, which sums in another order"),
        ("resources.workers_per_trial", "it was recorded with several workers, which sum in another order"),
    ):
        if key in names:
            return text
    return None
