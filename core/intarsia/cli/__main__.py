"""`python -m intarsia.cli` does the same as the command `intarsia`."""

from __future__ import annotations

import sys

from intarsia.cli import main

if __name__ == "__main__":
    sys.exit(main())
