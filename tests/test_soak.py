"""What a long sweep holds stays as it is: memory, open files, processes; and nothing is left of it at the end."""

import os
import subprocess
import sys

import pytest
import soak

# what a worker may hold more in the last quarter than in the second: its trials differ in their sizes
TOLERANCE = 0.05
DRIVER_BYTES_PER_TRIAL = 50 * 1024


def test_what_a_process_holds_is_seen(tmp_path):
    wait = "print(flush=True); input()"
    held = []
    for program in (wait, f"a = [open('/dev/null') for _ in range(50)]; b = bytearray(2**25); {wait}"):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            held.append(soak.held(process.pid))
            process.communicate(b"\n")
        assert soak.held(process.pid) is None
    (memory, files, _), (more_memory, more_files, _) = held
    assert more_files - files == 50
    assert more_memory - memory >= 2**25


def test_a_process_that_has_lost_its_parent_is_found():
    environment = {**os.environ, soak.MARK: "here"}
    shell = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], env=environment, capture_output=True, check=True, text=True
    )
    orphan = int(shell.stdout)
    try:
        assert soak.marked("here") == {orphan: "sleep 60 "}
        assert soak.marked("elsewhere") == {}
    finally:
        os.kill(orphan, 9)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(7200)
def test_an_hour(tmp_path):
    found = soak.summary(soak.soak(1, tmp_path))
    assert found["left"] == []
    for kind, row in found["kinds"].items():
        second, last = row["second"], row["last"]
        assert last["processes"] <= second["processes"], kind
        assert last["files"] <= second["files"], kind
        if kind == "driver":
            assert row["bytes_per_trial"] <= DRIVER_BYTES_PER_TRIAL
        else:
            assert last["bytes"] <= (1 + TOLERANCE) * second["bytes"], kind
