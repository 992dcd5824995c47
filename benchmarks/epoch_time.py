"""How long does an epoch of one trial take: training, the cut, and the evaluation of the network that was cut?

Ours is `trainers.recipe.compress` as a sweep runs it, on random images of CIFAR-10's shape, for each way of running a step
(`--steps`), data type and decomposition. Beside it an epoch as SVD training's authors publish it: their step
(`step_cost.AuthorsStep`), images decoded and augmented one by one by torchvision's transforms in a DataLoader, evaluation
with a read per batch. Epochs are timed in turn; the first of each is left out (libraries load, code is compiled, graphs are
captured). On a CPU times are processor time of one thread, on a GPU wall time; with fewer than 50,000 images they are
scaled to as many.

    python benchmarks/epoch_time.py --device cpu --json FILE --markdown FILE
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_options import benchmark_parser, write
from PIL import Image
from step_cost import AuthorsStep, authors_network
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainers import recipe
from trainers.config import MethodConfig, ModelConfig, TrainingConfig
from trainers.data import ImageData
from trainers.models import ModelSpec, build_model
from trainers.optimizers import learning_rate_at

SHAPE, CLASSES, CIFAR10 = (3, 32, 32), 10, 50_000
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
VALIDATION = 0.1
FORMS = ("channel", "spatial")


def random_images(count: int) -> ImageData:
    """Images of CIFAR-10's shape, a tenth of them for validation."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    rows, split = torch.arange(count), round(count * VALIDATION)
    names = tuple(str(label) for label in range(CLASSES))
    return ImageData(images, labels, rows[split:], rows[:split], MEAN, STD, names)


class DecodedOneByOne(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR10 gives with the usual transforms."""

    def __init__(self, data: ImageData, rows: Tensor, augmented: bool) -> None:
        side = data.sample_shape[1]
        random = (
            [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()] if augmented else []
        )
        self.transform = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])
        self.images = data.images[rows].permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels[rows].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def seconds_of(device: torch.device) -> float:
    """What the clock of this device shows; on a GPU all that was asked of it is done."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def authors(
    step: AuthorsStep, data: ImageData, training: TrainingConfig, epochs: int, device: torch.device, workers: int
) -> Iterator[float]:
    """Train the network of `step` for `epochs` in the authors' way, by the schedule of `training`; yield seconds of each."""
    model = step.model.to(device)
    loading = {
        "batch_size": training.batch_size,
        "num_workers": workers,
        "pin_memory": device.type == "cuda",
        "generator": torch.Generator().manual_seed(training.seed),
    }
    train = DataLoader(DecodedOneByOne(data, data.train_rows, augmented=True), shuffle=True, drop_last=True, **loading)
    validation = DataLoader(DecodedOneByOne(data, data.validation_rows, augmented=False), **loading)
    for epoch in range(epochs):
        started = seconds_of(device)
        model.train()
        for number, (images, labels) in enumerate(train):
            step.set_learning_rate(learning_rate_at((epoch + number / len(train)) / epochs, training))
            step(images.to(device), labels.to(device))
        model.eval()
        loss, hits = 0.0, 0
        with torch.no_grad():
            for images, labels in validation:
                logits, target = model(images.to(device)), labels.to(device)
                loss += F.cross_entropy(logits, target).item()
                hits += (logits.argmax(1) == target).sum().item()
        yield seconds_of(device) - started


def ours(setting: recipe.Setting, form: str, start: bytes) -> Iterator[float]:
    """Seconds of each epoch of a trial."""
    on_gpu = setting.device.type == "cuda"
    for result in recipe.compress(setting, MethodConfig(decomposition=form), start):
        yield result.duration_s if on_gpu else result.cpu_s


def stage_one(setting: recipe.Setting, form: str) -> bytes:
    """A network for trials to start from, trained on two batches."""
    size = setting.training.batch_size
    few = replace(setting.data, train_rows=setting.data.train_rows[: 2 * size])
    training = replace(setting.training, step="eager", pretrain_epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        for _ in recipe.pretrain(
            replace(setting, data=few, training=training), MethodConfig(decomposition=form), Path(folder)
        ):
            pass
        return (Path(folder) / recipe.MODEL_FILE).read_bytes()


def measure(runs: dict[str, Iterator[float]], rounds: int) -> dict[str, list[float]]:
    """Seconds per epoch of each, one figure a round, measured in turn."""
    for run in runs.values():
        next(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(next(run))
    return times


def table(found: dict[str, dict[str, float]], model: str) -> str:
    """Markdown."""
    lines = [
        f"| epoch of {model} | s | authors' / it |",
        "|---|---:|---:|",
        *(f"| {name} | {row['s']:.2f} | {row['speedup']:.2f} |" for name, row in found.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, help="of one epoch [default: 50,000 on a GPU, 1,422 on a CPU]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", nargs="+", default=["eager"], help="ways of running our step")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--workers", type=int, help="of the authors' DataLoader [default: 4 on a GPU, 0 on a CPU]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    workers = (4 if on_gpu else 0) if options.workers is None else options.workers
    data = random_images(options.images or (CIFAR10 if on_gpu else 1422))  # 1,422: ten batches of 128 are trained
    spec = ModelSpec(ModelConfig(options.model), SHAPE, CLASSES)
    training = TrainingConfig(batch_size=options.batch_size, epochs=options.rounds + 1, augmentation="crop_flip")
    setting = recipe.Setting(spec, data, training, device=device)
    runs = {}
    for form in FORMS:
        torch.manual_seed(0)
        step = AuthorsStep(authors_network(build_model(spec), form, SHAPE).to(device), MethodConfig(strength=0.01))
        runs[f"authors, {form}"] = authors(step, data, training, training.epochs, device, workers)
    for form in FORMS:
        start = stage_one(setting, form)
        for way, dtype in product(options.steps, options.dtypes):
            placed = replace(setting, training=replace(training, step=way, dtype=dtype))
            runs[f"{way}, {dtype}, {form}"] = ours(placed, form, start)
    times = measure(runs, options.rounds)
    scale = CIFAR10 / len(data.images)
    found = {}
    for name, values in times.items():
        theirs = times[f"authors, {name.rpartition(', ')[2]}"]
        speedup = statistics.median(a / b for a, b in zip(theirs, values, strict=True))
        found[name] = {"s": scale * statistics.median(values), "speedup": speedup}
    figures = {"model": options.model, "batch_size": options.batch_size, "images": len(data.images), "workers": workers}
    write(options, {**figures, "rounds": options.rounds, "epochs": found}, table(found, options.model))


if __name__ == "__main__":
    main()
