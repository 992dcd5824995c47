"""How fast is it here: the step, an epoch, an array of trials, a sweep. One command runs these benchmarks.

    python benchmarks/speed.py --device cpu --output docs/benchmarks
    python benchmarks/speed.py --device cuda --output docs/benchmarks

Needs torch, torchvision, numpy and this repository. Writes what they found to speed_<device>.json and
speed_<device>.md, with the hardware and the versions. To add a benchmark: enter its file in QUESTIONS, with the options
that it takes on each device; it must take --device, --json and --markdown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.provenance import environment

HERE = Path(__file__).parent
WAYS = ("--steps", "eager", "compile", "graph", "compile_graph")


@dataclass(frozen=True)
class Question:
    """A benchmark's file, what it answers, and its options by device, and with --quick."""

    file: str
    text: str
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)


QUESTIONS = (
    Question(
        "step_cost.py",
        "What does a training step cost, beside the dense network's and beside the authors'?",
        {
            "cpu": ("--rounds", "3", "--repeats", "1", "--steps", "eager", "compile"),
            "cuda": ("--rounds", "15", "--repeats", "20", *WAYS),
            "quick": ("--model", "tiny", "--rounds", "1", "--repeats", "1", "--batch-size", "8"),
        },
    ),
    Question(
        "epoch_time.py",
        "How long does an epoch of one trial take?",
        {
            "cpu": ("--rounds", "1", "--images", "782"),  # five batches of 128
            "cuda": WAYS,
            "quick": ("--model", "resnet8", "--rounds", "1", "--batch-size", "8", "--images", "24"),
        },
    ),
    Question(
        "array_scaling.py",
        "What does it give to train K trials as one array?",
        {
            "cpu": ("--networks", "mlp", "--batches", "shared", "--counts", "1", "8", "32"),
            "cuda": ("--counts", "1", "2", "4", "8", "16", "32", "64", "--steps", "100"),
            "quick": ("--networks", "mlp", "--batches", "own", "--counts", "2", "--steps", "2", "--rounds", "1"),
        },
    ),
    Question(
        "end_to_end.py",
        "What does a front cost?",
        {
            "quick": (
                *("--trials", "2", "--authors", "1", "--array", "2"),
                *("--images", "80", "--pretrain-epochs", "1", "--epochs", "1"),
            ),
        },
    ),
)


def answered(question: Question, device: str, options: tuple[str, ...]) -> tuple[Any, str]:
    """Run one benchmark; return its figures and its table."""
    with tempfile.TemporaryDirectory() as folder:
        figures, table = Path(folder) / "figures.json", Path(folder) / "table.md"
        files = ("--json", str(figures), "--markdown", str(table))
        subprocess.run([sys.executable, str(HERE / question.file), "--device", device, *options, *files], check=True)
        return json.loads(figures.read_text()), table.read_text()


def heading(found: dict[str, Any], device: str) -> str:
    hardware, packages = found["hardware"], found["packages"]
    gpus = ", ".join(hardware["gpus"]) or "none"
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "torchvision", "numpy") if name in packages)
    return (
        f"# Speed on {'a GPU' if device == 'cuda' else 'a CPU'}\n\n"
        f"{hardware['cpu']} ({hardware['cpu_capability']}), {hardware['cpu_count']} processors, "
        f"{hardware['memory_bytes'] / 2**30:.0f} GiB; GPU: {gpus}; Python {found['python']}, {versions}.\n\n"
        f"    python benchmarks/speed.py --device {device}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="tiny networks: the benchmarks run, and mean nothing")
    options = parser.parse_args()
    found = environment()
    kept = {key: found[key] for key in ("python", "packages", "hardware")}
    figures: dict[str, Any] = {"device": options.device, "environment": kept}
    parts = [heading(found, options.device)]
    for question in QUESTIONS:
        chosen = question.options.get("quick" if options.quick else options.device, ())
        figures[question.file], table = answered(question, options.device, chosen)
        parts.append(f"## {question.text}\n\n`{question.file}`\n\n{table}")
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"speed_{options.device}"
    target.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    target.with_suffix(".md").write_text("\n".join(parts))
    print(f"{target}.json\n{target}.md")


if __name__ == "__main__":
    main()
