"""A sweep as a person sees it in MLflow's UI, in a real browser."""

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.paths import SweepPaths
from orchestrator.records import read_records

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
RANKFRONT = str(Path(sys.executable).parent / "rankfront")
LIMIT_MS = 60_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.server,
    pytest.mark.ray,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine"),
]


@contextmanager
def ui(output):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (output.parent / "ui.log").open("w") as log:
        process = subprocess.Popen([RANKFRONT, "ui", str(output), "--port", str(port)], stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (output.parent / "ui.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_the_sweep_its_front_and_its_picture_are_there(tmp_path):
    from playwright.sync_api import sync_playwright

    config, output = tmp_path / "ui.yaml", tmp_path / "out"
    config.write_text(
        "name: ui\nmodel: {name: tiny}\ndata: {name: digits, validation_fraction: 0.2}\nsearch_space: svd_training\n"
        "training: {batch_size: 64, pretrain_epochs: 4, epochs: 3, learning_rate: 2.0e-3}\n"
        "search: {num_trials: 4}\nscheduler: {name: none}\nfinetune: {num_models: 2, epochs: 2}\n"
    )
    subprocess.run([RANKFRONT, "sweep", str(config), "--output", str(output)], check=True, timeout=300)
    records = read_records(SweepPaths(output).results)
    with ui(output) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(LIMIT_MS)
        page.goto(f"{address}/#/experiments/1/runs")
        page.get_by_role("link", name="ui", exact=True).last.wait_for()
        page.get_by_text(f"{len(records) + 1} matching runs").wait_for()

        members = {record.name for record in records if pareto_in_mlflow(output, record) == "true"}
        assert members
        order = "orderByKey=metrics.%60macs_ratio%60&orderByAsc=true"  # by a metric the runs are shown flat
        page.goto(f"{address}/#/experiments/1/runs?searchFilter=tags.pareto%20%3D%20'true'&{order}")
        page.get_by_text(f"{len(members)} matching run").wait_for()
        for name in members:
            page.get_by_role("link", name=name, exact=True).wait_for()

        parent = page_of_parent(output)
        page.goto(f"{address}/#/experiments/1/runs/{parent}")
        page.get_by_text("Show more").first.click()
        page.get_by_role("cell", name="dense", exact=True).first.wait_for()  # a row of the note's table
        picture = page.locator("img[src^='get-artifact']")
        picture.wait_for()
        assert picture.evaluate("image => image.complete && image.naturalWidth") == 720

        page.goto(f"{address}/#/experiments/1/runs/{parent}/artifacts/front.png")
        shown = page.locator("img[src^='blob:']").first
        shown.wait_for()
        assert shown.evaluate("image => image.naturalWidth") == 720
        browser.close()


def pareto_in_mlflow(output, record):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{output}/mlflow.db").get_run(record.run_id).data.tags["pareto"]


def page_of_parent(output):
    from mlflow import MlflowClient

    (run,) = MlflowClient(f"sqlite:///{output}/mlflow.db").search_runs(["1"], "tags.stage = 'sweep'")
    return run.info.run_id
