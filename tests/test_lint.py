"""The linters and the type checker are part of the suite: what they refuse does not land."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command", [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]], ids=["format", "lint", "types"]
)
def test_clean(command, pytestconfig):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
