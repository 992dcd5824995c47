"""Every exception that rankfront raises for a user to read.

RankfrontError
├── ConfigError        a setting breaks a rule (also a ValueError)
├── DataError          a data set is missing, unreadable or inconsistent
├── CheckpointError    a saved file is missing, damaged, foreign or of another configuration
├── ExportError        a network cannot be exported as asked, or does not give the same when exported
├── TrainingError      a training cannot go on
│   └── NonFiniteError     a loss or weight became NaN or infinite
├── SweepError         a sweep cannot start or go on (raised by `orchestrator`)
│   ├── StorageError       its output directory is full or cannot be written
│   └── LostWorkerError    one of the workers that train a run together is gone; the run can start again
└── ClusterError       a cluster cannot be used, or refuses what it is asked (raised by `orchestrator`)

Each message names the rule, the value that broke it and the remedy.
"""


class RankfrontError(Exception):
    """Base of all errors that are the user's to mend."""


class ConfigError(RankfrontError, ValueError):
    """One or more settings break a rule; `problems` holds (field, message) pairs."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{field}: {text}" if field else text for field, text in problems))


class DataError(RankfrontError):
    """A data set is missing, unreadable or inconsistent with the configuration."""


class CheckpointError(RankfrontError):
    """A saved file is missing, damaged, foreign or belongs to another configuration."""


class ExportError(RankfrontError):
    """A network cannot be exported as asked, or does not give the same when exported."""


class TrainingError(RankfrontError):
    """A training cannot go on."""


class NonFiniteError(TrainingError):
    """A loss or a weight became NaN or infinite."""


class SweepError(RankfrontError):
    """A sweep cannot start or go on."""


class StorageError(SweepError):
    """The output directory is full or cannot be written; what was written before is whole."""


class LostWorkerError(SweepError):
    """One of the workers that train a run together is gone; the run can start again from its checkpoint."""


class ClusterError(RankfrontError):
    """A cluster cannot be used, or refuses what it is asked."""
