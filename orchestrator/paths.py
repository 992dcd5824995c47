"""Every file and folder of a sweep's output directory, named in one place."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainers.errors import SweepError
from trainers.rules import is_printable

_LONGEST_NAME, _LONGEST_PATH = 200, 2000  # bytes; a temporary name is longer


def stays_inside(path: str) -> bool:
    """Whether a path that comes from the network can be one of a file in a folder, and leads nowhere else."""
    parts = PurePosixPath(path).parts
    plain = parts and path == PurePosixPath(path).as_posix() and not PurePosixPath(path).is_absolute()
    fits = (
        is_printable(path)
        and len(path.encode()) <= _LONGEST_PATH
        and all(len(part.encode()) <= _LONGEST_NAME for part in parts)
    )
    return bool(plain and fits and ".." not in parts and "\\" not in path)


def absolute(path: Path) -> Path:
    """Return a path as a user gives it, made absolute; raises SweepError for one that no file can have."""
    if not is_printable(str(path)):
        raise SweepError(f"a path must consist of printable characters, but got {str(path)!r:.200}")
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise SweepError(f"a path must begin with ~/ or the name of a user, but is {str(path)!r}: {error}") from error


@dataclass(frozen=True)
class SweepPaths:
    """The layout of an output directory, given as an absolute path."""

    root: Path

    @classmethod
    def of(cls, directory: Path) -> "SweepPaths":
        """The layout of the output directory that a user names; raises SweepError as `absolute` does."""
        return cls(absolute(directory))

    @property
    def config(self) -> Path:
        """The resolved configuration: every default filled in."""
        return self.root / "config.yaml"

    @property
    def state(self) -> Path:
        """The sweep's identity and its MLflow store."""
        return self.root / "sweep.json"

    @property
    def results(self) -> Path:
        """One row a run."""
        return self.root / "results.parquet"

    @property
    def points(self) -> Path:
        """One row for each network that was measured."""
        return self.root / "points.parquet"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the sweep."""
        return self.root / ".lock"

    @property
    def mirror(self) -> Path:
        """The URL that the folder is sent to (`stored.opened`)."""
        return self.root / ".mirror.json"

    @property
    def mirror_lock(self) -> Path:
        """Held by the process that sends the folder to a URL."""
        return self.root / ".mirror.lock"

    @property
    def layers(self) -> Path:
        """Which layers are decomposed, which are not, and why."""
        return self.root / "layers.json"

    @property
    def front(self) -> Path:
        """What `rankfront front --format json` prints."""
        return self.root / "front.json"

    @property
    def study(self) -> Path:
        """Optuna's journal."""
        return self.root / "study.journal"

    @property
    def mlflow_db(self) -> Path:
        """MLflow's default store."""
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where the default store keeps artifacts."""
        return self.root / "mlartifacts"

    @property
    def tracking(self) -> Path:
        """What is on its way to MLflow, and the ids of the runs there."""
        return self.root / "tracking"

    @property
    def tagged(self) -> Path:
        """The tags `pareto` and `pick` as MLflow has them, where they are not those of any run."""
        return self.tracking / "tags.json"

    @property
    def logged_models(self) -> Path:
        """The runs whose networks have been given to MLflow as models."""
        return self.tracking / "models.json"

    @property
    def environment(self) -> Path:
        """Versions, hardware and code that the sweep ran with."""
        return self.root / "environment.json"

    @property
    def front_picture(self) -> Path:
        """The front as a picture, for MLflow's note of the sweep."""
        return self.root / "front.png"

    @property
    def report(self) -> Path:
        """The page that `rankfront report` writes."""
        return self.root / "report.html"

    @property
    def latency(self) -> Path:
        """What `rankfront latency` measured."""
        return self.root / "latency.json"

    @property
    def latency_table(self) -> Path:
        """Times of the network's layers, from which the latency of cuts is foreseen."""
        return self.root / "latency_table.json"

    @property
    def stage_one_store(self) -> Path:
        """Networks of stage 1 by what they depend on, beside the sweep: other sweeps in the same folder share them."""
        return self.root.parent / ".stage1"

    @property
    def tune(self) -> Path:
        """Ray Tune's working files; nothing in them is read again."""
        return self.root / "tune"

    @property
    def reruns(self) -> Path:
        """Its runs trained again by `rankfront rerun`, each an output directory of its own."""
        return self.root / "reruns"

    def curve(self, name: str) -> Path:
        """All scored cuts of one trial, as MLflow shows tables."""
        return self.run(name) / "curve.json"

    def deployed(self, name: str) -> Path:
        """A finalist's network with those layers dense that measured faster so, where there are any."""
        return self.run(name) / "deployed.pt"

    def packed_model(self, name: str) -> Path:
        """A run's network on its way to MLflow."""
        return self.run(name) / "mlflow_model"

    def run(self, name: str) -> Path:
        """The folder of one run: `checkpoint.pt` while it trains, `model.pt` when it has ended."""
        return self.root / "runs" / name

    def has_begun(self, name: str) -> bool:
        """Whether the run of that name has ever been started."""
        return self.run(name).is_dir()
