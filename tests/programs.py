"""The programs that tests start beside pytest."""

import shutil
import sys
from pathlib import Path

RANKFRONT = str(Path(sys.executable).parent / "rankfront")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
NO_CHROMIUM = "no chromium or google-chrome on the PATH"
