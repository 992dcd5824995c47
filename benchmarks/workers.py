"""What does a training gain or lose with two workers (`resources.workers_per_trial`) on this machine?

Epochs of stage 1 on random images of CIFAR-10's shape (LeNet-5's: MNIST's) are trained in turn by one worker of one thread,
by one of two threads, and by two of one thread each, on a Ray of this machine, all with the same batches. The first epoch of
each is left out: libraries load, and the other worker starts. Evaluation is not counted. Medians of the rounds, least and
most; wall time depends on what else runs, the CPU time of all workers less.

    python benchmarks/workers.py --model resnet20 --json FILE --markdown FILE
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from bench_options import benchmark_parser, write
from epoch_time import CLASSES, random_images

from orchestrator.config import DataConfig, ResourcesConfig, SweepConfig
from orchestrator.ray_session import ray_session
from orchestrator.team import team_of
from trainers import recipe
from trainers.config import MethodConfig, ModelConfig, TrainingConfig
from trainers.loop import PendingEpoch, TrainedEpoch, TrainEpoch, each_alone
from trainers.models import ModelSpec


def epochs(setting: recipe.Setting, train_epoch: TrainEpoch, num_threads: int) -> Iterator[TrainedEpoch]:
    """What each epoch of stage 1 took."""
    found: list[TrainedEpoch] = []

    def kept(due: PendingEpoch) -> TrainedEpoch | Exception:
        torch.set_num_threads(num_threads)
        trained = train_epoch(due)
        if isinstance(trained, TrainedEpoch):
            found.append(trained)
        return trained

    for _ in each_alone(recipe.pretrain_steps(setting, MethodConfig(strength=0.0)), kept):
        yield found.pop()


def measure(runs: dict[str, Iterator[TrainedEpoch]], rounds: int) -> dict[str, list[TrainedEpoch]]:
    """The epochs of each, one a round, in turn."""
    for run in runs.values():
        next(run)
    times: dict[str, list[TrainedEpoch]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(next(run))
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(found: dict[str, dict[str, dict[str, float]]], title: str) -> str:
    """Markdown."""
    lines = [f"| {title} | wall s | CPU s |", "|---|---:|---:|"]
    for name, row in found.items():
        cells = (f"{row[key]['median']:.2f} ({row[key]['least']:.2f} to {row[key]['most']:.2f})" for key in row)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    import ray

    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=1422, help="a tenth of them is for validation")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = random_images(options.images)
    if options.model == "lenet5":
        data = replace(data, images=data.images[:, :1, :28, :28].contiguous(), mean=(0.5,), std=(0.3,))
    training = TrainingConfig(batch_size=options.batch_size, pretrain_epochs=options.rounds + 1)
    model = ModelConfig(options.model)
    config = SweepConfig(
        "workers", model, DataConfig("cifar10"), training=training, resources=ResourcesConfig(workers_per_trial=2)
    )
    setting = recipe.Setting(ModelSpec(model, data.sample_shape, CLASSES), data, training)
    with ray_session(config.resources), team_of(config, [ray.put(data.arrays())]) as together:
        assert together is not None
        runs = {
            "one worker, one thread": epochs(setting, PendingEpoch.train, 1),
            "one worker, two threads": epochs(setting, PendingEpoch.train, 2),
            "two workers, one thread each": epochs(setting, together, 1),
        }
        times = measure(runs, options.rounds)
    found = {
        name: {
            "wall_s": spread([epoch.duration_s for epoch in values]),
            "cpu_s": spread([epoch.cpu_s for epoch in values]),
        }
        for name, values in times.items()
    }
    steps = len(data.train_rows) // options.batch_size
    title = f"{options.model}, {steps} steps of batch {options.batch_size}"
    figures = {"model": options.model, "batch_size": options.batch_size, "steps": steps, "rounds": options.rounds}
    write(options, {**figures, "runs": found}, table(found, title))


if __name__ == "__main__":
    main()
