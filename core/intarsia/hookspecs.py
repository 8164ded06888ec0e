"""The hooks that a plugin may implement. This page is the vendor manual.

A plugin is a module that has `intarsia_api_version = (1, 0)` and any of these functions, and is named by
an entry point in the group `intarsia`. It needs no decorator and must not import torch: it returns
records, whose heavy parts are `"module:name"` strings. A hook may name fewer parameters than listed
here, never others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pluggy

from intarsia.interfaces import (
    Check,
    CompilerSpec,
    ConfigChange,
    Event,
    OpSafety,
    PassManagerSpec,
    PassSpec,
    PieceView,
    PlatformSpec,
    SplitRuleSpec,
    StaticGraphSpec,
    StoreSpec,
)

PROJECT = "intarsia"
spec = pluggy.HookspecMarker(PROJECT)


@spec
def intarsia_platforms() -> Iterable[PlatformSpec] | None:
    """Return the device types that the plugin brings, each with its defaults.

    Example:
        def intarsia_platforms():
            return [PlatformSpec(name="acme", device_type="acme",
                                 available="intarsia_acme.device:available",
                                 compilers=("acme", "inductor"))]
    """


@spec
def intarsia_compilers() -> Iterable[CompilerSpec] | None:
    """Return the compilers that the plugin brings. A user names them in `compilers = [...]`.

    Example:
        def intarsia_compilers():
            return [CompilerSpec(name="acme", version="1.2", devices=("cpu",),
                                 factory="intarsia_acme.adaptor:AcmeCompiler")]
    """


@spec
def intarsia_split_rules() -> Iterable[SplitRuleSpec] | None:
    """Return named split rules. A user names them in `split-at = [...]` like an op.

    Example:
        def intarsia_split_rules():
            return [SplitRuleSpec(name="acme-attention", rule="intarsia_acme.rules:at_attention")]
    """


@spec
def intarsia_passes() -> Iterable[PassSpec] | None:
    """Return graph passes, each with its stage and its place among the others.

    Example:
        def intarsia_passes():
            return [PassSpec(name="acme-fuse-norm", version="3", stage="piece-aten",
                             factory="intarsia_acme.passes:FuseNorm", min_matches=1)]
    """


@spec
def intarsia_pass_managers() -> Iterable[PassManagerSpec] | None:
    """Return pass managers; a platform or the user names one to replace the built-in manager.

    Example:
        def intarsia_pass_managers():
            return [PassManagerSpec(name="acme", factory="intarsia_acme.passes:AcmeManager")]
    """


@spec
def intarsia_static_graphs() -> Iterable[StaticGraphSpec] | None:
    """Return static-graph backends; a platform or the user names one.

    Example:
        def intarsia_static_graphs():
            return [StaticGraphSpec(name="acme", factory="intarsia_acme.graphs:AcmeGraphs",
                                    devices=("acme",))]
    """


@spec
def intarsia_op_safety() -> Iterable[OpSafety] | None:
    """Return which operations may be recorded and which must break a recording.

    Example:
        def intarsia_op_safety():
            return [OpSafety("acme::attention", "safe", device_type="acme")]
    """


@spec
def intarsia_stores() -> Iterable[StoreSpec] | None:
    """Return stores for artifacts, by URL scheme.

    Example:
        def intarsia_stores():
            return [StoreSpec(scheme="acme", factory="intarsia_acme.store:AcmeStore")]
    """


@spec
def intarsia_doctor() -> Iterable[Check] | None:
    """Return checks that `intarsia doctor` runs.

    Example:
        def intarsia_doctor():
            return [Check("acme driver", "intarsia_acme.device:check_driver")]
    """


@spec(firstresult=True)
def intarsia_choose_platform(
    device_type: str | None, available: Sequence[PlatformSpec], config: Any
) -> str | None:
    """Return the name of the platform to use, or None to leave it to others; built-ins answer last.

    `device_type` is that of the model's tensors, or None where it has none.

    Example:
        def intarsia_choose_platform(device_type):
            return "acme-v2" if device_type == "acme" else None
    """


@spec(firstresult=True)
def intarsia_choose_compiler(
    piece: PieceView, platform: PlatformSpec, available: Sequence[CompilerSpec], config: Any
) -> Sequence[str] | None:
    """Return the compilers to try for a piece, in order, or None; routes of the user come first.

    Example:
        def intarsia_choose_compiler(piece):
            return ["acme"] if "aten::_scaled_mm" in piece.ops else None
    """


@spec
def intarsia_adjust_config(config: Any, traits: Mapping[str, str]) -> Iterable[ConfigChange] | None:
    """Return settings to change for this device. What the user has set is never overridden silently:
    that is an error which names the plugin and the key.

    Example:
        def intarsia_adjust_config(traits):
            if traits.get("memory") == "small":
                return [ConfigChange("uncovered", "eager", "no room for a general kernel")]
    """


@spec
def intarsia_event(event: Event) -> None:
    """Be told of an event. An exception is logged with the plugin's name and stops nothing.

    Example:
        def intarsia_event(event):
            print(event.phase, event.done, event.total)
    """
