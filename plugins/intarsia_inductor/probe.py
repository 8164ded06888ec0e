"""Loads a package in a process of its own, where a load may crash: on a GPU that was seen.

    python -m intarsia_inductor.probe FOLDER

reads the package and inputs in a folder, and writes what came of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from intarsia.interfaces import Decision, PieceSignature
from intarsia_inductor.calls import refuse
from intarsia_inductor.package_file import load_package, private_folder
from intarsia_inductor.proof import Trial, here, random_inputs

DEADLINE = 180.0
"""Seconds for a process to import torch, load a package and run it once."""


def in_child(data: bytes, device: torch.device) -> Trial:
    """Return the trial that runs a package in a new process each time.

    It raises a CompileRejected with what happened where that process does not come to its end.
    """

    def run(inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        folder = private_folder()
        try:
            (folder / "package").write_bytes(data)
            torch.save((str(device), inputs), folder / "inputs")
            _wait(folder)
            ours, outputs = torch.load(folder / "outputs", weights_only=True, map_location=device)
            return ours, outputs
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run


def probe_load(data: bytes, signature: PieceSignature, device: torch.device) -> Decision:
    """Say whether a process can load a package and run it at its smallest sizes."""
    sizes = {name: low for name, (low, _) in signature.box.items()}
    try:
        in_child(data, device)(random_inputs(signature, device.type, device.index, sizes, 1))
    except Exception as error:
        return Decision(False, str(error))
    return Decision(True)


def _wait(folder: Path) -> None:
    command = [sys.executable, "-m", "intarsia_inductor.probe", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise refuse(f"a process that loads its package did not end in {DEADLINE:.0f} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise refuse(f"a process that loads its package ends with {name}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise refuse(f"a process that loads its package fails: {lines[-1]}")


def main(folder: Path) -> None:
    """Load the package in a folder, run it on the inputs there, and write the results."""
    device, inputs = torch.load(folder / "inputs", weights_only=True)
    function = load_package((folder / "package").read_bytes(), torch.device(device))
    torch.save(here(function)(inputs), folder / "outputs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
