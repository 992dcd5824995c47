"""A finished sweep in seconds: every run trained and written down in this process, without Ray and without a search."""

import json
from dataclasses import replace

from orchestrator.config import dump_config
from orchestrator.finalists import pick_finalists
from orchestrator.jobs import dense_job, finetune_job, run_job, stage_one_of, trial_job
from orchestrator.ledger import Ledger
from orchestrator.output import read_state, write_state
from orchestrator.paths import SweepPaths
from orchestrator.provenance import environment, with_data
from orchestrator.publish import publish
from orchestrator.tracking.spool import PARENT
from orchestrator.tracking.target import tracking_target
from orchestrator.tracking.tracker import Tracker
from trainers.data import load_test, load_train_validation


def open_tracker(config, paths):
    """The tracker of a sweep in `paths`, as the pipeline opens it."""
    target = tracking_target(config.name, paths.mlflow_db, paths.mlflow_artifacts)
    state = read_state(paths)
    write_state(paths, replace(state, store=target.key))
    return Tracker(target, state.sweep_id, paths.root, paths.tracking)


def record_sweep(config, output, choices):
    """Run a sweep whose trials are `choices` of the search space; returns its records."""
    paths = SweepPaths(output)
    paths.root.mkdir(parents=True)
    paths.config.write_text(dump_config(config))
    tracker = open_tracker(config, paths)
    ledger = Ledger(config, paths, tracker, [])
    data = load_train_validation(config.data)
    test_data = load_test(config.data, data)
    test = test_data.arrays()
    paths.environment.write_text(json.dumps(with_data(environment(), data, test_data)))

    def train(job, test=None):
        ledger.started(job)
        for result in run_job(job, config, str(output), data.arrays(), test):
            assert "error" not in result, result
            ledger.reported(job.name, result)
        ledger.ended(job.name, None)

    tracker.start_run(PARENT, "sweep", {}, {})
    train(stage_one_of(choices[0]))
    for number, settings in enumerate(choices):
        train(trial_job(f"trial-{number:04d}", number, settings))
    picks = pick_finalists(ledger.records("trial"), config.finetune, config.search.constraints)
    for job in [dense_job(config), *map(finetune_job, picks)]:
        train(job, test)
    publish(ledger, config, paths, tracker)
    tracker.end_run(PARENT, "FINISHED")
    tracker.close()
    assert json.loads(paths.state.read_text())["store"]
    return ledger.records()
