"""`python -m jobpipe` is the command `jobpipe`."""

import sys

from jobpipe.cli import main

# Guarded because worker processes (trio-parallel) import this module again.
if __name__ == "__main__":
    sys.exit(main())
