"""What does a front cost: a sweep's trials as arrays, the same trials one after the other, and the authors' pipeline?

The training work of a sweep: stage 1 for each form, then `--trials` trials with settings drawn from the search space
`svd_training`, a curve of cuts scored at the end of each (`trainers.recipe`, as a sweep runs it; without searching,
continuation, tracking and processes). `arrays` trains up to K of one form as one program, `one by one` each by itself.
`authors` gets one point from a training: both stages by their step (`step_cost.AuthorsStep`), from images decoded one by
one (`epoch_time`), with the settings of the first `--authors` trials, cut by the trial's own threshold and scored as ours
are. The three are taken in turn, a trial each, so that a slow moment of the machine falls on all.

Seconds are processor time of one thread on a CPU, wall time on a GPU. "To as many points" is the cost of a training times
the points that `arrays` has in the end. Images are generated, ten classes of noisy patterns, unless a folder of CIFAR-10 is
given; hypervolumes are those of validation score and share of MACs, over accuracy 0 and the dense network.

    python benchmarks/end_to_end.py --device cpu --json FILE --markdown FILE      # small, some minutes
    python benchmarks/end_to_end.py --device cuda                                 # ResNet-20, 50,000 images, 64 trials
"""

import argparse
import copy
import math
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench_options import benchmark_parser, write
from epoch_time import authors as authors_epochs
from epoch_time import seconds_of
from step_cost import AuthorsStep, TwoConv, authors_network
from torch import nn

from orchestrator.pareto import hypervolume
from search_spaces import SEARCH_SPACES
from trainers import recipe
from trainers.arrays import TrialArray
from trainers.config import CurveConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig, apply_settings
from trainers.curve import trained_curve
from trainers.data import ImageData, load_train_validation
from trainers.layers import svd_layers
from trainers.loop import EpochResult
from trainers.methods import make_method, pretraining
from trainers.models import ModelSpec
from trainers.surgery import replace_modules

Point = tuple[float, float]  # score, share of the dense network's MACs
SEED, CLASSES = 0, 10


@dataclass(frozen=True)
class Form:
    """What is measured on a device."""

    model: str
    side: int
    images: int
    batch_size: int
    pretrain_epochs: int
    epochs: int
    array: int
    authors: int
    step: str
    dtype: str
    curve: CurveConfig


FORMS = {
    "cpu": Form(
        "tiny", 8, 640, 32, 6, 6, 16, 16, "eager", "float32", CurveConfig(recovery_steps=2, batch_norm_batches=2)
    ),
    "cuda": Form("resnet20", 32, 50_000, 128, 5, 5, 32, 2, "compile_graph", "bfloat16", CurveConfig()),
}


class Draws:
    """An Optuna trial as far as a search space needs one: values are drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self._random.choice(choices)

    def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
        if log:
            return math.exp(self._random.uniform(math.log(low), math.log(high)))
        return self._random.uniform(low, high)


def patterns(side: int, count: int) -> ImageData:
    """Images (3, side, side) of ten classes: one of four coarse patterns of its class each, moved, under noise."""
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    kind = torch.randint(4, (count,), generator=generator)
    coarse = torch.randn(4 * CLASSES, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear")[4 * labels + kind]
    shifts = torch.randint(-side // 8, side // 8 + 1, (count, 2), generator=generator).tolist()
    moved = torch.stack([image.roll(tuple(shift), (1, 2)) for image, shift in zip(smooth, shifts, strict=True)])
    noisy = moved + 0.7 * torch.randn(moved.shape, generator=generator)
    pixels = (127.5 + 40 * noisy).clamp(0, 255).to(torch.uint8)
    split, rows = count // 5 if count < 5000 else count // 10, torch.arange(count)
    channels = pixels[split:].float().div(255).transpose(0, 1).flatten(1)
    mean, std = (tuple(values.tolist()) for values in (channels.mean(1), channels.std(1)))
    return ImageData(pixels, labels, rows[split:], rows[:split], mean, std, tuple("0123456789"))


def trials(count: int, training: TrainingConfig) -> list[tuple[TrainingConfig, MethodConfig]]:
    """The settings of each trial."""
    space = SEARCH_SPACES["svd_training"]
    return [apply_settings(space(Draws(number)), training, MethodConfig()) for number in range(count)]  # type: ignore[arg-type]


def ours(
    setting: recipe.Setting, chosen: list[tuple[TrainingConfig, MethodConfig]], size: int, curve: CurveConfig
) -> Iterator[list[Point]]:
    """Stage 1 and the trials, `size` at once; yield the points of each trial that ends."""
    by_form: dict[str, list[tuple[TrainingConfig, MethodConfig]]] = defaultdict(list)
    for training, method in chosen:
        by_form[method.decomposition].append((training, method))
    for waiting in by_form.values():
        start = stage_one(setting, waiting[0][1])
        array: TrialArray[EpochResult] = TrialArray(size)
        last: dict[int, EpochResult] = {}
        while waiting or array.slots:
            while waiting and len(array.slots) < size:
                training, method = waiting.pop(0)
                placed = replace(setting, training=training)
                array.add(recipe.compress_steps(placed, method, start, curve=curve))
            found = array.advance()
            last |= found.results
            for slot, error in found.ended.items():
                if error is not None:
                    raise error
                yield [(cut["score"], cut["macs"] / setting.dense_cost.macs) for cut in last[slot].curve or []]


def stage_one(setting: recipe.Setting, method: MethodConfig) -> bytes:
    """The content of stage 1's model file."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in recipe.pretrain(setting, pretraining(method), Path(folder)):
            pass
        return (Path(folder) / recipe.MODEL_FILE).read_bytes()


def authors(
    setting: recipe.Setting, chosen: list[tuple[TrainingConfig, MethodConfig]], curve: CurveConfig, workers: int
) -> Iterator[list[Point]]:
    """Both stages for each point, from the initial weights on."""
    own_cut = replace(curve, num_points=0)
    for training, config in chosen:
        method = make_method(config, setting.network)
        method.prepare(recipe.dense_model(setting))
        model = authors_network(recipe.dense_model(setting), config.decomposition, setting.spec.sample_shape)
        model.to(setting.device)
        for stage, epochs in ((pretraining(config), setting.training.pretrain_epochs), (config, training.epochs)):
            settings = setting.training if stage is not config else training
            step = AuthorsStep(model, stage, settings.learning_rate)
            for _ in authors_epochs(step, setting.data, settings, epochs, setting.device, workers):
                pass
        method.attach(one_convolution(model, method.model), method.form)
        method.bind()
        pruned = method.finish()
        scored = trained_curve(method, pruned, None, setting.data.to(setting.device), setting.training, own_cut)
        yield [(cut.score, cut.macs / setting.dense_cost.macs) for cut in scored]


def one_convolution(trained: nn.Module, like: nn.Module) -> nn.Module:
    """The authors' network with decomposed layers as `like` has them, so that it is cut and scored by the same code."""
    model, layers = copy.deepcopy(trained), svd_layers(like)

    def joined(name: str, pair: TwoConv) -> nn.Module:
        layer = copy.deepcopy(layers[name]).to(pair.s.device)
        right, left = pair.factors()
        with torch.no_grad():
            for parameter, value in ((layer.u, left.mT), (layer.s, pair.s), (layer.vt, right)):
                parameter.copy_(value)
        return layer

    found: dict[nn.Module, nn.Module] = {
        module: joined(name, module) for name, module in model.named_modules() if isinstance(module, TwoConv)
    }
    replace_modules(model, found.get)
    return model


def in_turn(ways: dict[str, Iterator[list[Point]]], device: torch.device) -> dict[str, list[tuple[float, list[Point]]]]:
    """Take the ways in turn, a trial each; return for each way (seconds, points) of its trials."""
    found: dict[str, list[tuple[float, list[Point]]]] = {name: [] for name in ways}
    while ways:
        for name, way in list(ways.items()):
            started = seconds_of(device)
            points = next(way, None)
            if points is None:
                del ways[name]
            else:
                found[name].append((seconds_of(device) - started, points))
    return found


def summary(ended: list[tuple[float, list[Point]]]) -> dict[str, Any]:
    """What a way took and found; `front` is (seconds so far, hypervolume so far) after each trial."""
    seconds, points, front = 0.0, [], []
    for took, new in ended:
        seconds += took
        points += new
        rows = np.array([(-score, share) for score, share in points], dtype=np.float64)
        front.append((seconds, hypervolume(rows, np.array([0.0, 1.0]))))
    return {
        "trainings": len(ended),
        "points": len(points),
        "seconds": seconds,
        "hypervolume": front[-1][1],
        "front": front,
    }


def compared(found: dict[str, dict[str, Any]]) -> None:
    """Add what each takes to as many points as `arrays` has, and to the hypervolume that the authors' way ends with."""
    goal, level = found["arrays"]["points"], found["authors"]["hypervolume"]
    for way in found.values():
        way["seconds_to_as_many_points"] = way["seconds"] * goal / way["points"]
        way["seconds_to_authors_hypervolume"] = next((s for s, reached in way["front"] if reached >= level), None)


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    form, ways = found["form"], found["ways"]
    lines = [
        f"{form['model']}, {found['images']} of {found['sample_shape']}, batches of {form['batch_size']}, "
        f"{form['pretrain_epochs']} + {form['epochs']} epochs, {found['trials']} trials, the authors' way ran "
        f"{ways['authors']['trainings']}; arrays of {form['array']}; one by one: {form['step']}; ours: {form['dtype']}.",
        "",
        f"| way | trainings | points | s | s to {ways['arrays']['points']} points | hypervolume | s to the authors' |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, way in ways.items():
        level = way["seconds_to_authors_hypervolume"]
        reached = "-" if level is None else f"{level:.1f}"
        lines.append(
            f"| {name} | {way['trainings']} | {way['points']} | {way['seconds']:.1f} | "
            f"{way['seconds_to_as_many_points']:.0f} | {way['hypervolume']:.3f} | {reached} |"
        )
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--trials", type=int, default=64)
    for name in ("images", "array", "authors", "pretrain-epochs", "epochs"):
        parser.add_argument(f"--{name}", type=int, help="[default: as the device's form has it]")
    parser.add_argument("--step", help="of trials one by one [default: eager on a CPU, compile_graph on a GPU]")
    parser.add_argument("--dtype", help="of ours [default: float32 on a CPU, bfloat16 on a GPU]")
    parser.add_argument("--cifar10", metavar="FOLDER", help="train.parquet and test.parquet; needs pyarrow")
    parser.add_argument("--workers", type=int, help="of the authors' DataLoader [default: 4 on a GPU, 0 on a CPU]")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    given = {key: value for key, value in vars(options).items() if key in Form.__annotations__ and value is not None}
    form = replace(FORMS[options.device], **given)
    workers = options.workers if options.workers is not None else 4 * (device.type == "cuda")
    if options.cifar10 is None:
        data = patterns(form.side, form.images)
    else:
        data = load_train_validation(DataConfig("cifar10", root=options.cifar10, max_train=form.images))
    training = TrainingConfig(
        batch_size=form.batch_size,
        pretrain_epochs=form.pretrain_epochs,
        epochs=form.epochs,
        augmentation="crop_flip",
        dtype=form.dtype,
        seed=SEED,
    )
    spec = ModelSpec(ModelConfig(form.model), data.sample_shape, CLASSES)
    setting = recipe.Setting(spec, data.to(device), training, device=device)
    alone = replace(setting, training=replace(training, step=form.step))
    plain = replace(setting, training=replace(training, dtype="float32"))
    chosen = trials(options.trials, training)
    ways = {
        "arrays": ours(setting, chosen, form.array, form.curve),
        "one by one": ours(alone, trials(options.trials, alone.training), 1, form.curve),
        "authors": authors(plain, trials(options.trials, plain.training)[: form.authors], form.curve, workers),
    }
    found = {name: summary(ended) for name, ended in in_turn(ways, device).items()}
    compared(found)
    figures = {
        "form": asdict(form),
        "device": options.device,
        "trials": options.trials,
        "images": len(data.images),
        "data": "patterns" if options.cifar10 is None else "cifar10",
        "sample_shape": list(data.sample_shape),
        "ways": found,
    }
    write(options, figures, table(figures))


if __name__ == "__main__":
    main()
