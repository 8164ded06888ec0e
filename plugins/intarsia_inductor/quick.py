"""Quick artifacts: what Inductor generated, with its kernels compiled.

Two forms. A *module* needs torch alone: the piece's Python and its kernels' libraries. An *entry* is
Inductor's own artifact with the libraries beside it, for pieces whose outputs share memory, that hold
constants, or that run on a GPU; loading one imports Inductor.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from intarsia import torch_compat
from intarsia.errors import CompileRejected
from intarsia_inductor.calls import boxed
from intarsia_inductor.generated import HOOK, without_compiler
from intarsia_inductor.kernels import given, import_kernels
from intarsia_inductor.package_file import made_with, refuse_other_torch

MAGIC = b"intarsia-quick-1\n"
_LENGTH = struct.Struct("<Q")


@frozen
class QuickArtifact:
    """A quick artifact, opened.

    Attributes:
        form: "module" or "entry".
        direct: whether the generated call is the piece's call, without AOTAutograd's wrappers around it.
        made_with: versions that must be the same where it is loaded.
        body: the Python of a module, or Inductor's artifact.
        libraries: the kernels' libraries by digest.
    """

    form: str
    direct: bool
    made_with: Mapping[str, str]
    body: bytes | memoryview
    libraries: Mapping[str, bytes | memoryview]

    def to_bytes(self) -> bytes:
        """Return it as bytes: a mark, a JSON header, the body, and the libraries."""
        header = {
            "form": self.form, "direct": self.direct, "made_with": dict(self.made_with),
            "body": len(self.body), "libraries": {d: len(b) for d, b in self.libraries.items()},
        }  # fmt: skip
        text = json.dumps(header).encode()
        return b"".join([MAGIC, _LENGTH.pack(len(text)), text, self.body, *self.libraries.values()])

    @staticmethod
    def from_bytes(data: bytes | memoryview) -> QuickArtifact:
        """Read what `to_bytes` wrote; nothing of it runs.

        Raises:
            ValueError: the bytes are no quick artifact.
        """
        view = memoryview(data)
        start = len(MAGIC) + _LENGTH.size
        if bytes(view[: len(MAGIC)]) != MAGIC or len(view) < start:
            raise ValueError("the bytes are no artifact of Inductor's")
        (length,) = _LENGTH.unpack(view[len(MAGIC) : start])
        header = json.loads(bytes(view[start : start + length]))
        at = start + length + header["body"]
        body = view[start + length : at]
        libraries: dict[str, memoryview] = {}
        for digest, size in header["libraries"].items():
            libraries[digest] = view[at : at + size]
            at += size
        if at != len(view):
            raise ValueError(f"the artifact has {len(view)} bytes, its header says {at}")
        return QuickArtifact(
            header["form"], header["direct"], header["made_with"], body, libraries
        )


def make_quick(
    saved: torch_compat.SavedGraph, settings: Mapping[str, Any], *, direct: bool, outputs: int
) -> bytes:
    """Return the artifact of a piece that was compiled with some settings."""
    direct = direct and saved.returns(outputs)
    with torch_compat.inductor_settings(settings):
        module = without_compiler(saved.source)
    if module.light is not None and direct and not saved.has_constants:
        body, form, versions = module.light.encode(), "module", made_with()
    else:
        body, form = saved.to_bytes(module.source), "entry"
        versions = {**made_with(), "torch's sources": torch_compat.torch_key()}
    return QuickArtifact(form, direct, versions, body, module.libraries).to_bytes()


def load_quick(data: bytes | memoryview) -> Callable[..., Sequence[Any]]:
    """Return the callable of a quick artifact. The caller holds the process's lock around Inductor.

    Raises:
        CompileRejected: the artifact is fine, and cannot be used here: the reason says why.
        ValueError: the bytes are no quick artifact.
    """
    artifact = QuickArtifact.from_bytes(data)
    refuse_other_torch(artifact.made_with)
    kernels = import_kernels(artifact.libraries)
    if artifact.form == "module":
        return boxed(_run_module(bytes(artifact.body).decode(), kernels))
    _refuse_other_sources(artifact.made_with)
    with given(kernels):
        function, call = torch_compat.inductor_load(bytes(artifact.body))
    return boxed(call) if artifact.direct and call is not None else function


def _run_module(source: str, kernels: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    space: dict[str, Any] = {HOOK: kernels.__getitem__, "__name__": "intarsia_inductor.piece"}
    exec(compile(source, "<inductor piece>", "exec"), space)
    made: Callable[..., Any] = space["call"]
    return made


def _refuse_other_sources(made: Mapping[str, str]) -> None:
    # Torch itself only asserts this.
    here = torch_compat.torch_key()
    if made.get("torch's sources") != here:
        raise CompileRejected("made by a torch of the same version whose sources differ")
