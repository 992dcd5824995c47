"""What all tests share. Everything runs for real: torch, Ray, Optuna, MLflow on SQLite, files on disk."""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from sweeps import run
from xdist.scheduler import LoadScopeScheduling

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


# a file that starts clusters or servers
_STARTS_SERVERS = re.compile(r"mark\.(ray|server|browser)\b|\bray_cluster\b|\bfinished\b")


class OneWithServers(LoadScopeScheduling):
    """Of several test processes one runs all files that start clusters and servers, the others the rest, file by file.

    Clusters that start at the same moment slow each other down, and may choose the same port.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "servers" if _starts_servers(Path(__file__).parent.parent / file) else file


@functools.cache
def _starts_servers(file: Path) -> bool:
    return _STARTS_SERVERS.search(file.read_text()) is not None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneWithServers:
    return OneWithServers(config, log)


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
