"""The report of a real sweep: what it says can be done with a network works."""

import re
import shlex
import subprocess
from html import unescape

import pytest
from programs import RANKFRONT
from rich.console import Console

from orchestrator.pipeline import run_sweep
from orchestrator.report.sweep import read_sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def reported(tmp_path_factory, ray_cluster, small_sweep):
    """A finished sweep, and the page of its report without its scripts."""
    folder = tmp_path_factory.mktemp("reported") / "sweep"
    with open(folder.with_suffix(".log"), "w") as log:
        run_sweep(small_sweep, folder, Console(file=log))
    done = subprocess.run([RANKFRONT, "report", folder], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "report.html")]
    page = (folder / "report.html").read_text()
    return read_sweep(folder), re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def commands(page, beginning):
    blocks = re.findall(r'<pre class="copy">(.*?)</pre>', page, re.DOTALL)
    return [unescape(block) for block in blocks if unescape(block).startswith(beginning)]


def test_every_finalist_is_there_with_its_pictures(reported):
    sweep, page = reported
    assert len(sweep.series.finalists) > 0
    for record in sweep.series.finalists:
        assert f">{record.name}</a>" in page
        assert f"{100 * record.test_accuracy:.2f} % <small>test accuracy" in page
        assert record.run_id in page
    for key in ("front", "hypervolume", "settings", "ranks", "spectra", "training", "orthogonality"):
        assert f'data-figure="{key}"' in page


def test_the_model_is_loaded_as_the_page_says(reported):
    sweep, page = reported
    found = commands(page, "from pathlib import Path\n\nfrom trainers import load_model")
    assert len(found) == len(sweep.series.finalists)
    space = {}
    exec(found[0], space)
    assert sum(parameter.numel() for parameter in space["model"].parameters()) == sweep.series.finalists[0].params


def test_a_finalist_and_its_trial_are_trained_again_as_the_page_says(reported):
    sweep, page = reported
    found = commands(page, "rankfront rerun")
    assert len(found) == len(sweep.series.finalists)
    for record, block in zip(sweep.series.finalists, found, strict=True):
        assert [shlex.split(line)[-1] for line in block.splitlines()] == [record.source, record.name]
    trial, finetuning = found[0].splitlines()
    for command in (trial, finetuning):
        verified = [RANKFRONT, *shlex.split(command)[1:], "--verify"]
        done = subprocess.run(verified, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "are equal, bit for bit" in done.stdout
