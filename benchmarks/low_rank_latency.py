"""Is a network with 60 % fewer MACs also faster? Wide networks, cut and timed beside the dense one.

Weights are random: times depend on shapes alone. Each layer keeps the same share of its full rank, in multiples of
`--rank-multiple`, the largest share with which the whole network keeps to the budget; layers that would cost as much as the
dense one stay dense. `slow layers dense`: as `rankfront latency` deploys it, with those layers dense that measure faster so.
All variants of a network are timed in turn. The aim is a speed-up of at least 0.75 of that in MACs.

    python benchmarks/low_rank_latency.py --json FILE --markdown FILE
"""

import platform
from collections.abc import Iterator
from typing import Any

import torch
from bench_options import benchmark_parser, write
from torch import nn

from trainers.config import ModelConfig
from trainers.cost import measure_cost
from trainers.deploy import DeployedLayer, deploy, plan_deployment, stored_spectra
from trainers.engines import ENGINES, inference
from trainers.form import ModelForm
from trainers.latency import layer_latencies, threads, time_in_turn, with_dense
from trainers.layers import svd_layers
from trainers.models import ModelSpec, build_shapes
from trainers.saved_model import SavedModel
from trainers.surgery import factorize

AIM = 0.75
NETWORKS = {
    "VGG-16, 3x32x32": ModelSpec(ModelConfig("vgg16"), (3, 32, 32), 10),
    "ResNet-50, 3x224x224": ModelSpec(ModelConfig("resnet50"), (3, 224, 224), 1000),
    "ViT-B/16, 3x224x224": ModelSpec(ModelConfig("vit_b_16"), (3, 224, 224), 1000),
}


def with_random_weights(model: nn.Module) -> nn.Module:
    """Return a network of the meta device on the CPU, its weights drawn at random, BatchNorm an identity."""
    generator = torch.Generator().manual_seed(0)
    model = model.to_empty(device="cpu").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.reset_parameters()
    return model


def cut(spec: ModelSpec, decomposition: Any, budget: float, multiple: int) -> SavedModel:
    """Return the network within `budget` of its MACs, every layer at the same share of its full rank."""
    shape, dense = spec.sample_shape, build_shapes(spec)
    allowed = budget * measure_cost(dense, shape).macs
    with torch.device("meta"):
        factorize(dense, decomposition, shape)
    full = {name: layer.full_rank for name, layer in svd_layers(dense).items()}
    spectra = stored_spectra(dense)

    def at(share: float) -> tuple[nn.Module, list[DeployedLayer]]:
        ranks = {name: min(rank, max(1, round(share * rank / multiple)) * multiple) for name, rank in full.items()}
        layers = plan_deployment(dense, ranks, shape)
        return deploy(dense, layers, spectra), layers

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if measure_cost(at(middle)[0], shape).macs <= allowed else (low, middle)
    model, layers = at(low)
    return SavedModel(with_random_weights(model), spec, ModelForm(decomposition, layers=tuple(layers)), {}, [])


def rows_of(name: str, spec: ModelSpec, options: Any) -> Iterator[dict[str, Any]]:
    """Time one network in all its variants."""
    networks = {"dense": with_random_weights(build_shapes(spec))}
    cuts = {form: cut(spec, form, 1 - options.removed, options.rank_multiple) for form in options.forms}
    images = torch.randn(max(options.batch), *spec.sample_shape)
    for number in options.threads:
        for engine in options.engines:
            for batch in options.batch:
                networks = {"dense": networks["dense"]}
                with threads(number):
                    for form, saved in cuts.items():
                        networks[form] = saved.model
                        timed = layer_latencies(saved.model, saved.form.layers or (), images[:batch], engine, 5)
                        slow = [layer.name for layer in timed if layer.faster_dense]
                        networks[f"{form}, {len(slow)} slow layers dense"] = with_dense(saved, slow).model
                    calls = {key: inference(network, images[:batch], engine) for key, network in networks.items()}
                    times = time_in_turn(calls, options.rounds)
                macs = {key: measure_cost(network, spec.sample_shape).macs for key, network in networks.items()}
                for key in list(networks)[1:]:
                    yield {
                        "network": name, "variant": key, "engine": engine, "batch": batch, "threads": number,
                        "dense_ms": times["dense"].median_ms, "ms": times[key].median_ms,
                        "speedup": times["dense"].median_ms / times[key].median_ms,
                        "macs_speedup": macs["dense"] / macs[key],
                    }  # fmt: skip


def markdown(rows: list[dict[str, Any]], options: Any) -> str:
    """One line a case."""
    lines = [
        f"{platform.machine()}, torch {torch.__version__}; {100 * options.removed:g} % of the MACs removed, ranks in "
        f"multiples of {options.rank_multiple}; medians of {options.rounds} rounds, ms a batch. Reached: the speed-up over "
        f"that in MACs (aim: {AIM}).",
        "",
        "| network | variant | engine | batch | threads | dense | low rank | speed-up | in MACs | reached |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        reached = row["speedup"] / row["macs_speedup"]
        mark = "" if reached >= AIM else " (missed)"
        lines.append(
            f"| {row['network']} | {row['variant']} | {row['engine']} | {row['batch']} | {row['threads']} | "
            f"{row['dense_ms']:.3g} | {row['ms']:.3g} | {row['speedup']:.2f} | {row['macs_speedup']:.2f} | "
            f"{reached:.2f}{mark} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--removed", type=float, default=0.6, help="share of the MACs")
    parser.add_argument("--rank-multiple", type=int, default=16)
    parser.add_argument("--forms", nargs="*", default=["channel", "spatial"], choices=["channel", "spatial"])
    parser.add_argument("--engines", nargs="*", default=["onnxruntime", "eager"], choices=ENGINES)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        for row in rows_of(name, NETWORKS[name], options):
            rows.append(row)
            print(row, flush=True)
    write(options, rows, markdown(rows, options))


if __name__ == "__main__":
    main()
