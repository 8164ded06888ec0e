"""Makes AOTInductor packages, and proves each before anybody else may use it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import fx

from intarsia import torch_compat
from intarsia.compiling.soundness import refuse_assumptions
from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest
from intarsia_inductor.calls import refuse
from intarsia_inductor.package_file import (
    LIBRARY,
    Package,
    cpp_library,
    load_package,
    made_with,
    private_folder,
)
from intarsia_inductor.packaged_graph import packaged_graph
from intarsia_inductor.probe import in_child
from intarsia_inductor.proof import here, prove
from intarsia_inductor.strides import keep_strides, strides_of

OWN = ("aten", "prims", "higher_order", "inductor")
"""The namespaces whose operators have no effect but on their arguments."""

CHEAP: Mapping[str, Any] = {
    # Line tables are four fifths of the library, and reading them costs a second of the C++ compiler.
    "aot_inductor.enable_line_tables": False,
    "aot_inductor.enable_frame_pointer": False,
}


def make_package(
    request: CompileRequest, settings: Mapping[str, Any]
) -> tuple[bytes, Callable[..., Sequence[Any]], str]:
    """Return a piece's package as bytes, its callable in this process, and a note.

    Raises:
        CompileRejected: the piece cannot be packaged; the reason begins "stays quick:".
    """
    original = fx.GraphModule(request.graph, _copy(request.graph))
    graph = packaged_graph(request)
    foreign: dict[str, None] = {}
    refusals: list[CompileRejected] = []

    wanted = strides_of(request)

    def adjust(aten: fx.Graph) -> None:
        keep_strides(aten, wanted)
        try:
            _inspect(aten, foreign)
            refuse_assumptions(request)
        except CompileRejected as error:
            refusals.append(error)  # what torch wraps around it says less
            raise

    ours = {**_known(CHEAP), **_known(_for_device(request)), **_one_cpp_library(settings)}
    folder = private_folder()
    try:
        library = torch_compat.inductor_package(
            graph.module, graph.inputs, {**ours, **settings}, str(folder), adjust
        )
        files = _files(Path(library))
    except Exception as error:
        if refusals:
            raise _quick(refusals[0]) from None
        raise refuse(f"AOTInductor: {type(error).__name__}: {_first_line(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    call = evolve(graph.call, serial=bool(foreign))
    data = Package(call, made_with(), files).to_bytes()
    if request.device_type == "cpu":
        function = load_package(data, _device(request))
        return data, function, prove(here(function), original, request, bool(foreign))
    note = prove(in_child(data, _device(request)), original, request, bool(foreign))
    if not note.endswith("eager"):
        raise refuse(f"{note}, and on {request.device_type} a load that was not tried may crash")
    return data, load_package(data, _device(request)), note


def _copy(module: fx.GraphModule) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return graph


def _inspect(aten: fx.Graph, foreign: dict[str, None]) -> None:
    for node in aten.nodes:
        if node.op != "call_function":
            continue
        name = torch_compat.operation_name(node.target)
        if torch_compat.is_random(node):
            raise refuse(f"{name} draws random numbers")
        if name and name.split("::")[0] not in OWN:
            foreign.setdefault(name)


def _quick(error: CompileRejected) -> CompileRejected:
    return error if error.what.startswith("stays quick") else refuse(str(error))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else "")


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings that this torch does not have."""
    return {name: v for name, v in settings.items() if name in torch_compat.inductor_options()}


def _for_device(request: CompileRequest) -> Mapping[str, Any]:
    # Otherwise a library on a GPU names its kernels' files by path.
    return {} if request.device_type == "cpu" else {"aot_inductor.embed_kernel_binary": True}


def _one_cpp_library(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Link the C++ standard library that torch has loaded, by its file.

    A compiler that has it as an archive alone would put a second one into the package.
    """
    setting = "aot_inductor.custom_op_libs"
    loaded = cpp_library()
    if sys.platform != "linux" or not loaded or setting in settings:
        return {}
    if setting not in torch_compat.inductor_options():
        return {}
    # "-l:FILE" is looked for below the folders of libraries, of which torch's is one.
    torch_libraries = os.path.realpath(Path(torch.__file__).parent / "lib")
    return {setting: [f":{os.path.relpath(os.path.realpath(loaded), torch_libraries)}"]}


def _device(request: CompileRequest) -> torch.device:
    if request.device is None:
        return torch.device(request.device_type)
    return torch.device(request.device_type, request.device)


def _files(library: Path) -> dict[str, bytes]:
    files = {LIBRARY: library.read_bytes()}
    operators = library.with_suffix(".json")
    if operators.exists():
        files[Path(LIBRARY).with_suffix(".json").name] = operators.read_bytes()
    return files
