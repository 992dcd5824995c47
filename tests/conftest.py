"""What all tests share. Everything runs for real: torch, Ray, Optuna, MLflow on SQLite, files on disk."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
from sweeps import run

from orchestrator.config import FinetuneConfig, SchedulerConfig, SearchConfig, SweepConfig, TrackingConfig
from orchestrator.front import SweepFront
from orchestrator.ray_session import prepare_environment
from trainers.config import CurveConfig, DataConfig, ModelConfig, TrainingConfig
from trainers.data import ImageData, load_train_validation

for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(name, None)  # a developer's own servers are not for tests
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


hypothesis.settings.register_profile("rankfront", deadline=None)  # a loaded machine is not a failure
hypothesis.settings.load_profile("rankfront")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes one of them runs, file by file, all that start clusters and servers, the others the rest.

    Clusters that start at the same moment slow each other down, and may choose the same port.
    """

    def is_heavy(item: pytest.Item) -> bool:
        marked = any(map(item.get_closest_marker, ("ray", "server", "browser")))
        return marked or "ray_cluster" in getattr(item, "fixturenames", ())

    heavy = {item.path for item in items if is_heavy(item)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("servers" if item.path in heavy else item.path.stem))


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_train_validation(DataConfig("digits", validation_fraction=0.2))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of two CPUs for all tests that ask for it; `ray_session` finds it and leaves it running."""
    prepare_environment()
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_sweep() -> SweepConfig:
    """A sweep of seconds: four trials of two epochs, one after the other, each with a short curve; none is stopped."""
    return SweepConfig(
        name="small",
        model=ModelConfig("tiny"),
        data=DataConfig("digits", validation_fraction=0.2),
        search_space="spaces:quick",
        training=TrainingConfig(batch_size=64, pretrain_epochs=2, epochs=2, learning_rate=2e-3),
        search=SearchConfig(num_trials=4, max_concurrent=1),
        curve=CurveConfig(num_points=3, recovery_steps=2),
        scheduler=SchedulerConfig("none"),
        finetune=FinetuneConfig(num_models=2, epochs=1),
        tracking=TrackingConfig(log_models=False, log_report=False),  # seconds each; `finished` has both
    )


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None, small_sweep: SweepConfig
) -> tuple[Path, SweepConfig, SweepFront]:
    """A finished sweep, with models and report in MLflow: its output directory, configuration and what it returned."""
    output = tmp_path_factory.mktemp("finished") / "sweep"
    return output, small_sweep, run(replace(small_sweep, tracking=TrackingConfig()), output)
