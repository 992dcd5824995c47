"""Whether a store can be used, without recording anything in it."""

from orchestrator.tracking.target import TrackingTarget


def probe(target: TrackingTarget) -> str:
    """Return what is at the target's URI, where a database gets MLflow's tables as it would by a sweep; raises SweepError
    where it cannot be used.

    The default store of a sweep that has not begun is not made for that.
    """
    if target.own_database is not None and not target.own_database.exists():
        return "a new SQLite store in the output directory"
    from orchestrator.tracking.store import opened

    with opened(target) as client:
        found = client.get_experiment_by_name(target.experiment)
    return f"{target.shown}, experiment {target.experiment!r} {'is new' if found is None else 'is there'}"
