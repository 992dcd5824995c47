"""A sweep as a person sees it in MLflow's UI, in a real browser."""

import pytest
from mlflow import MlflowClient
from programs import CHROMIUM, NO_CHROMIUM, RANKFRONT
from recorded import record_sweep
from servers import free_port, running

from orchestrator.paths import SweepPaths

LIMIT_MS = 60_000


@pytest.mark.browser
@pytest.mark.server
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_the_sweep_its_front_and_its_picture_are_there(small_sweep, tmp_path, monkeypatch):
    from playwright.sync_api import sync_playwright

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output, port = tmp_path / "out", free_port()
    records = record_sweep(small_sweep, output, [{"strength": 0.01, "energy": energy} for energy in (0.05, 0.3)])
    client = MlflowClient(f"sqlite:///{SweepPaths(output).mlflow_db}")
    (parent,) = client.search_runs(["1"], "tags.stage = 'sweep'")
    members = client.search_runs(["1"], "tags.pareto = 'true'")
    assert 0 < len(members) < len(records)
    address = f"http://127.0.0.1:{port}"
    server = running([RANKFRONT, "ui", str(output), "--port", str(port)], f"{address}/health", tmp_path / "ui.log")
    with server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(LIMIT_MS)
        page.goto(f"{address}/#/experiments/1/runs")
        page.get_by_text(f"{len(records) + 1} matching runs").wait_for()

        order = "orderByKey=metrics.%60macs_ratio%60&orderByAsc=true"  # by a metric the runs are shown flat
        page.goto(f"{address}/#/experiments/1/runs?searchFilter=tags.pareto%20%3D%20'true'&{order}")
        page.get_by_text(f"{len(members)} matching run").wait_for()
        for run in members:
            page.get_by_role("link", name=run.info.run_name, exact=True).wait_for()

        page.goto(f"{address}/#/experiments/1/runs/{parent.info.run_id}")
        page.get_by_text("Show more").first.click()
        page.get_by_role("cell", name="dense", exact=True).first.wait_for()  # a row of the note's table
        picture = page.locator("img[src^='get-artifact']")
        picture.wait_for()
        assert picture.evaluate("image => image.complete && image.naturalWidth") == 720

        page.goto(f"{address}/#/experiments/1/runs/{parent.info.run_id}/artifacts/front.png")
        shown = page.locator("img[src^='blob:']").first
        shown.wait_for()
        assert shown.evaluate("image => image.naturalWidth") == 720
        browser.close()
