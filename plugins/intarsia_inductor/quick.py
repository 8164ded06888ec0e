"""Quick artifacts: what Inductor generated, with its kernels compiled.

Two forms. A *module* needs torch alone: the piece's Python and its kernels' libraries. An *entry* is
Inductor's own artifact with the libraries beside it, for pieces whose outputs share memory or that run on
a GPU; loading one imports Inductor.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from attrs import frozen

from intarsia import torch_compat
from intarsia.errors import CompileRejected
from intarsia_inductor.calls import boxed
from intarsia_inductor.container import cut, joined, opened
from intarsia_inductor.generated import HOOK, without_compiler
from intarsia_inductor.kernels import given, import_kernels
from intarsia_inductor.package_file import made_with, refuse_other_torch

MAGIC = b"intarsia-quick-1\n"


@frozen
class QuickArtifact:
    """A quick artifact, opened.

    Attributes:
        form: "module" or "entry".
        direct: whether the generated call is the piece's call, without AOTAutograd's wrappers around it.
        made_with: versions that must be the same where it is loaded.
        body: the Python of a module, or Inductor's artifact.
        libraries: the kernels' libraries by digest.
        constants: the tensors that a module finds among its globals, as `torch.save` writes them.
    """

    form: str
    direct: bool
    made_with: Mapping[str, str]
    body: bytes | memoryview
    libraries: Mapping[str, bytes | memoryview]
    constants: bytes | memoryview = b""

    def to_bytes(self) -> bytes:
        """Return it as bytes: a mark, a JSON header, the body, and the libraries."""
        header = {
            "form": self.form, "direct": self.direct, "made_with": dict(self.made_with),
            "body": len(self.body), "constants": len(self.constants),
            "libraries": {d: len(b) for d, b in self.libraries.items()},
        }  # fmt: skip
        return joined(MAGIC, header, (self.body, self.constants, *self.libraries.values()))

    @staticmethod
    def from_bytes(data: bytes | memoryview) -> QuickArtifact:
        """Read what `to_bytes` wrote; nothing of it runs.

        Raises:
            ValueError: the bytes are no quick artifact.
        """
        header, rest = opened(MAGIC, data, "artifact of Inductor's")
        sizes = header["libraries"]
        body, constants, *libraries = cut(
            rest, [header["body"], header["constants"], *sizes.values()]
        )
        return QuickArtifact(
            header["form"], header["direct"], header["made_with"], body,
            dict(zip(sizes, libraries, strict=True)), constants,
        )  # fmt: skip


def make_quick(
    saved: torch_compat.SavedGraph, settings: Mapping[str, Any], *, direct: bool, outputs: int
) -> bytes:
    """Return the artifact of a piece that was compiled with some settings."""
    direct = direct and saved.returns(outputs)
    with torch_compat.inductor_settings(settings):
        module = without_compiler(saved.source)
    if module.light is not None and direct and saved.is_plain:
        constants = _tensors_to_bytes(saved.constants) if saved.constants else b""
        body = module.light.encode()
        return QuickArtifact(
            "module", direct, made_with(), body, module.libraries, constants
        ).to_bytes()
    versions = {**made_with(), "torch's sources": torch_compat.torch_key()}
    body = saved.to_bytes(module.source)
    return QuickArtifact("entry", direct, versions, body, module.libraries).to_bytes()


def _tensors_to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(tensors), file)
    return file.getvalue()


def load_quick(
    data: bytes | memoryview, lock: AbstractContextManager[Any]
) -> Callable[..., Sequence[Any]]:
    """Return the callable of a quick artifact; `lock` is held while Inductor is at work.

    Raises:
        CompileRejected: the artifact is fine, and cannot be used here: the reason says why.
        ValueError: the bytes are no quick artifact.
    """
    artifact = QuickArtifact.from_bytes(data)
    refuse_other_torch(artifact.made_with)
    kernels = import_kernels(artifact.libraries)
    if artifact.form == "module":
        constants = bytes(artifact.constants)
        tensors = torch.load(io.BytesIO(constants), weights_only=True) if constants else {}
        return boxed(_run_module(bytes(artifact.body).decode(), kernels, tensors))
    _refuse_other_sources(artifact.made_with)
    with lock, given(kernels):
        function, call = torch_compat.inductor_load(bytes(artifact.body))
    return boxed(call) if artifact.direct and call is not None else function


def _run_module(
    source: str, kernels: Mapping[str, Callable[..., Any]], constants: Mapping[str, torch.Tensor]
) -> Callable[..., Any]:
    space: dict[str, Any] = {HOOK: kernels.__getitem__, "__name__": "intarsia_inductor.piece"}
    exec(compile(source, "<inductor piece>", "exec"), space)
    space.update(constants)  # the module sets them to None, as Inductor's loader expects
    made: Callable[..., Any] = space["call"]
    return made


def _refuse_other_sources(made: Mapping[str, str]) -> None:
    # Torch itself only asserts this.
    here = torch_compat.torch_key()
    if made.get("torch's sources") != here:
        raise CompileRejected("made by a torch of the same version whose sources differ")
