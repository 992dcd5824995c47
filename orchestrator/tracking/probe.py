"""Whether a store can be used, without leaving anything in it."""

from pathlib import Path

from orchestrator.tracking.target import TrackingTarget


def probe(target: TrackingTarget) -> str:
    """Return what is at the target's URI; raises SweepError where it cannot be used.

    The default store of a sweep that has not begun is not made for that.
    """
    if target.in_output and not Path(target.uri.removeprefix("sqlite:///")).exists():
        return "a new SQLite store in the output directory"
    import mlflow

    from orchestrator.tracking.store import usable

    with usable(target):
        found = mlflow.MlflowClient(tracking_uri=target.uri).get_experiment_by_name(target.experiment)
    return f"{target.shown}, experiment {target.experiment!r} {'is new' if found is None else 'is there'}"
