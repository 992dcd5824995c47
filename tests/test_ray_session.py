"""A Ray of the sweep's own, beside the process that has started it."""

import subprocess
import sys

import pytest

GROUP = """
import os, signal
from orchestrator.ray_session import connect
connect()
import ray
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
os.killpg(os.getpgrp(), signal.SIGTERM)
print(ray.get(ray.remote(lambda: 7).remote(), timeout=60))
"""


@pytest.mark.ray
def test_a_signal_to_the_drivers_group_leaves_its_ray_to_it():
    done = subprocess.run(
        [sys.executable, "-c", GROUP], capture_output=True, text=True, timeout=300, check=False, start_new_session=True
    )
    assert (done.returncode, done.stdout.split()) == (0, ["told", "7"]), done.stderr
