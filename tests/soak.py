"""Run a sweep for an hour and watch what its processes hold: memory, open files and how many they are.

python tests/soak.py --hours 1 --json FILE --markdown FILE
"""

import argparse
import contextlib
import json
import os
import platform
import re
import secrets
import statistics
import tempfile
import time
from pathlib import Path

from chaos import LIMIT_S, Sweep, below, processes
from servers import end

from orchestrator.paths import SweepPaths
from orchestrator.records import read_records

CONFIG = """
name: soak
model: {name: tiny}
data: {name: digits, validation_fraction: 0.2}
training: {batch_size: 64, pretrain_epochs: 3, epochs: 4, learning_rate: 2.0e-3}
search: {num_trials: 100000, max_concurrent: 2}
stop: {hours: HOURS}
finetune: {num_models: 2, epochs: 2}
"""
MARK = "RANKFRONT_SOAK"  # in the environment of all that the sweep starts, whoever its parent is by then
MIB = 2**20
# titles of Ray's processes, and what they are; the sweep's own is the driver
KINDS = {"ray::": "workers", "/raylet/raylet ": "raylet", "gcs_server": "GCS", "": "Ray's agents"}


def held(process):
    """Resident memory in bytes, open files and threads of a process; None if it has ended."""
    with contextlib.suppress(OSError):
        folder = Path("/proc") / str(process)
        status = dict(re.findall(r"^(RssAnon|Threads):\s*(\d+)", (folder / "status").read_text(), re.MULTILINE))
        if len(status) == 2:  # else it has just ended
            return int(status["RssAnon"]) * 1024, len(os.listdir(folder / "fd")), int(status["Threads"])
    return None


def sample(driver):
    """One row a kind of process: how many there are, and what they hold together."""
    kinds = {driver: "driver"}
    for pid, title in below(driver).items():
        kinds[pid] = next(kind for part, kind in KINDS.items() if part in title)
    rows = {}
    for pid, kind in kinds.items():
        if (found := held(pid)) is not None:
            row = rows.setdefault(kind, {"processes": 0, "bytes": 0, "files": 0, "threads": 0})
            for name, value in zip(row, (1, *found), strict=True):
                row[name] += value
    return rows


def marked(token):
    """The titles of the processes that have the mark in their environment, by their ids."""
    found = {}
    for pid, (_, title) in processes().items():
        with contextlib.suppress(OSError):
            if f"{MARK}={token}".encode() in (Path("/proc") / str(pid) / "environ").read_bytes():
                found[pid] = title
    return found


def soak(hours, folder, every_s=10.0):
    """Run the sweep in an empty folder; returns its samples, when its trials ended, and what is left of it at the end."""
    token = secrets.token_hex(16)
    sweep = Sweep(folder, CONFIG.replace("HOURS", str(hours)), **{MARK: token})
    started, samples = time.time(), []
    sweep.start()
    limit = time.monotonic() + 3600 * hours + LIMIT_S
    try:
        while sweep.running():
            assert time.monotonic() < limit, f"still there {LIMIT_S} s after its time:\n{sweep.log.read_text()}"
            samples.append({"s": time.time() - started, **sample(sweep.process.pid)})
            time.sleep(every_s)
    except BaseException:
        end(sweep.process)
        raise
    assert sweep.process.returncode == 0, sweep.log.read_text()
    left, limit = marked(token), time.monotonic() + 60
    while left and time.monotonic() < limit:  # some of Ray's notice a moment later
        time.sleep(1)
        left = marked(token)
    trials = [record for record in read_records(SweepPaths(sweep.output).results) if record.stage == "trial"]
    ends = sorted(trial.ended_at_s - started for trial in trials)
    return {"hours": hours, "samples": samples, "trial_ends_s": ends, "left": list(left.values())}


def summary(found):
    """For each kind of process its medians in the second and in the last quarter of the search; growth a trial of memory."""
    ends = found["trial_ends_s"]
    last = ends[-1]
    quarters = {"second": (last / 4, last / 2), "last": (3 * last / 4, last)}
    # trials from the middle of the one quarter to the middle of the other
    num_trials = sum(3 * last / 8 < end <= 7 * last / 8 for end in ends)
    rows = {}
    for kind in ("driver", *KINDS.values()):
        rows[kind] = row = {}
        for quarter, (low, high) in quarters.items():
            there = [each[kind] for each in found["samples"] if low < each["s"] <= high and kind in each]
            row[quarter] = {name: statistics.median(each[name] for each in there) for name in there[0]}
        row["bytes_per_trial"] = (row["last"]["bytes"] - row["second"]["bytes"]) / num_trials
    return {"trials": len(ends), "search_s": last, "left": found["left"], "kinds": rows}


def table(found):
    """The summary as a Markdown table."""
    lines = [
        f"{found['trials']} trials in {found['search_s'] / 60:.0f} minutes, two at once; {platform.machine()}, "
        f"{os.cpu_count()} cores. Medians of the second and of the last quarter. Left when the sweep had ended: "
        f"{', '.join(found['left']) or 'no process'}.",
        "",
        "| | processes | open files | threads | memory, MiB | growth of memory |",
        "|---|---|---|---|---|---|",
    ]
    for kind, row in found["kinds"].items():
        cells = [f"{row['second'][name]:g}, {row['last'][name]:g}" for name in ("processes", "files", "threads")]
        cells.append(", ".join(f"{row[quarter]['bytes'] / MIB:.1f}" for quarter in ("second", "last")))
        lines.append(f"| {kind} | {' | '.join(cells)} | {row['bytes_per_trial'] / 1024:.1f} KiB a trial |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--json", type=Path, help="file for the samples")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rankfront-soak-") as folder:
        found = soak(options.hours, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    text = table(summary(found))
    if options.markdown:
        options.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
