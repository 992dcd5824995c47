"""How well is a cut network's latency foreseen from times of its layers?

The table of times is measured as a sweep with a section `latency` does it. Then each network is cut to several budgets of
its MACs, every layer at the same share of its full rank, in multiples of 1 and of 8; layers that the table says are faster
dense are made dense; and all cuts are timed in turn, each by the quickest of many rounds of 2 ms, which other work on the
machine hardly changes. Weights are random: times depend on shapes alone.

    python benchmarks/foreseen_latency.py --json FILE --markdown FILE      # three minutes
"""

import os
import platform
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from bench_options import benchmark_parser, write
from low_rank_latency import cut, with_random_weights
from scipy.stats import spearmanr

from trainers.config import FactorizationConfig, LatencyConfig, ModelConfig
from trainers.cost import measure_cost
from trainers.engines import ENGINES, inference
from trainers.latency import quickest_in_turn, threads, with_dense
from trainers.latency_table import measure_table
from trainers.models import ModelSpec, build_shapes

NETWORKS = {
    "LeNet-5, 1x28x28": ModelSpec(ModelConfig("lenet5"), (1, 28, 28), 10),
    "ResNet-20, 3x32x32": ModelSpec(ModelConfig("resnet20"), (3, 32, 32), 10),
    "VGG-16, 3x32x32": ModelSpec(ModelConfig("vgg16"), (3, 32, 32), 10),
}
BUDGETS = (0.8, 0.6, 0.45, 0.3, 0.2, 0.1)
MULTIPLES = (1, 8)


def rows_of(name: str, engine: Any, form: Any) -> Iterator[dict[str, Any]]:
    """Foresee and time every cut of one network; the first row is the dense one's."""
    spec = NETWORKS[name]
    table = measure_table(spec, FactorizationConfig(), [form], LatencyConfig(engine=engine))
    dense = with_random_weights(build_shapes(spec))
    networks, foreseen = {"dense": dense}, {"dense": table.dense_ms}
    for budget in BUDGETS:
        for multiple in MULTIPLES:
            saved = cut(spec, form, budget, multiple)
            layers = saved.form.layers or ()
            times = table.layers[form]
            slow = [
                layer.name
                for layer in layers
                if layer.form == "low_rank" and times[layer.name].saved_ms(layer.rank) <= 0
            ]
            key = f"{budget:g}, multiples of {multiple}"
            networks[key], foreseen[key] = with_dense(saved, slow).model, table.predict(form, layers)
    images = torch.randn(1, *spec.sample_shape)
    with threads(1):
        measured = quickest_in_turn({key: inference(one, images, engine) for key, one in networks.items()}, 120)
    macs = {key: measure_cost(one, spec.sample_shape).macs for key, one in networks.items()}
    for key in networks:
        yield {
            "network": name, "engine": engine, "form": form, "cut": key, "macs_ratio": macs[key] / macs["dense"],
            "foreseen_ms": foreseen[key], "ms": measured[key],
        }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean absolute errors of cuts and of their speed-ups, as shares of what is measured, and Spearman's correlation."""
    dense, *cuts = rows
    speedups = [(dense["foreseen_ms"] / row["foreseen_ms"], dense["ms"] / row["ms"]) for row in cuts]
    return {
        "error": statistics.mean(abs(row["foreseen_ms"] / row["ms"] - 1) for row in cuts),
        "speedup_error": statistics.mean(abs(foreseen / real - 1) for foreseen, real in speedups),
        "correlation": float(spearmanr(*([row[key] for row in cuts] for key in ("foreseen_ms", "ms"))).statistic),
    }


def markdown(every: list[list[dict[str, Any]]]) -> str:
    """One line a network and engine."""
    lines = [
        f"{platform.machine()}, torch {torch.__version__}, batch 1, one thread, load average {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores; {len(BUDGETS) * len(MULTIPLES)} cuts of each network.",
        "",
        "| network | engine | form | dense, ms | cuts, ms | error | of the speed-up | Spearman |",
        "|---" * 8 + "|",
    ]
    for rows in every:
        found, times = summary(rows), [row["ms"] for row in rows[1:]]
        lines.append(
            f"| {rows[0]['network']} | {rows[0]['engine']} | {rows[0]['form']} | {rows[0]['ms']:.3g} | {min(times):.3g} to "
            f"{max(times):.3g} | {100 * found['error']:.1f} % | {100 * found['speedup_error']:.1f} % | "
            f"{found['correlation']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--engines", nargs="*", default=["onnxruntime", "eager"], choices=ENGINES)
    parser.add_argument("--forms", nargs="*", default=["channel", "spatial"], choices=["channel", "spatial"])
    options = parser.parse_args()
    every = []
    for name in options.networks:
        for engine in options.engines:
            for form in options.forms:
                every.append(list(rows_of(name, engine, form)))
                print(name, engine, form, summary(every[-1]), flush=True)
    write(options, every, markdown(every))


if __name__ == "__main__":
    main()
