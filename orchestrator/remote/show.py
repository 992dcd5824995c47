"""Jobs as a person reads them."""

from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.remote.sources import FETCH
from orchestrator.remote.submission import OUTPUT, SWEEP

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


def listed(jobs: "list[JobDetails]") -> str:
    """Return a head line and one line a job, whole on any terminal; jobs that only serve a fetch are left out."""
    rows = [("job", "state", "started", "duration", "sweep", "output")]
    for job in jobs:
        metadata = job.metadata or {}
        if FETCH not in metadata:
            told = (metadata.get(SWEEP, "-"), metadata.get(OUTPUT, "-"))
            rows.append((str(job.submission_id), job.status.value, _when(job.start_time), _duration(job), *told))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def described(job: "JobDetails") -> str:
    """Return one line for each thing that is known of a job."""
    metadata = job.metadata or {}
    lines = {
        "job": job.submission_id,
        "state": job.status.value,
        "exit code": job.driver_exit_code,
        "sweep": metadata.get(SWEEP),
        "output": metadata.get(OUTPUT),
        "command": job.entrypoint.removeprefix("exec "),
        "started": _when(job.start_time),
        "ended": _when(job.end_time) if job.end_time else None,
        "duration": _duration(job),
        "message": job.message,
    }
    return "\n".join(f"{key:<10} {value}" for key, value in lines.items() if value is not None)


def _when(time_ms: int | None) -> str:
    return "-" if not time_ms else datetime.fromtimestamp(time_ms / 1000).astimezone().isoformat(" ", "seconds")


def _duration(job: "JobDetails") -> str:
    if not job.start_time:
        return "-"
    end_s = job.end_time / 1000 if job.end_time else datetime.now().astimezone().timestamp()
    minutes, seconds = divmod(max(0, round(end_s - job.start_time / 1000)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
