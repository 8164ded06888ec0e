"""The process in which requirements run: `python -m intarsia.testing.conformance.child RESULTS NAMES`."""

from __future__ import annotations

import sys
from pathlib import Path

from intarsia.testing.conformance.runner import run_here
from intarsia.testing.conformance.subject import Subject

if __name__ == "__main__":
    run_here(Subject.from_json(sys.stdin.read()), sys.argv[2:], Path(sys.argv[1]))
