"""`python -m orchestrator`: the command line where the console script is not installed, as in a Ray job."""

import sys

from orchestrator.cli import main

if __name__ == "__main__":
    sys.argv[0] = "rankfront"  # as usage and `environment.json` show it
    main()
