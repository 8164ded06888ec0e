"""The key under which a plan is looked up: all that is known of a compile without tracing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from attrs import fields, frozen

from intarsia import torch_compat
from intarsia.bundle.sources import class_sources, replaced_in_torch
from intarsia.capture.call import Call, argument_values
from intarsia.capture.dynamic import Dynamic
from intarsia.capture.structure import Path, is_opaque, is_scalar
from intarsia.capture.subclasses import tensor_kind
from intarsia.capture.surroundings import ties_of
from intarsia.compiling.identity import (
    compiler_factors,
    platform_factors,
    torch_factors,
)
from intarsia.config import Config
from intarsia.digests import function_identity, plain_digest, source_digest
from intarsia.dtypes import dtype_name
from intarsia.errors import IntarsiaError
from intarsia.host import Host
from intarsia.interfaces import PlatformSpec
from intarsia.passes.plan import pass_plan
from intarsia.ranks.state import job_factors
from intarsia.references import resolve_reference
from intarsia.split.encode import CannotEncode, encode_argument

_APART = frozenset({
    "artifact", "cache", "cache_key_file", "cache_wait", "compile_timeout", "compilers", "dump",
    "exchange_deadline", "executor", "max_tasks_warning", "name", "op_safety", "options", "outputs",
    "passes", "platform", "plugins", "split_at", "split_rule", "static_graph", "static_graph_backend",
    "static_graph_budget", "static_inputs", "unknown_ops", "verify", "workers",
})  # fmt: skip
"""Settings that do not change a plan, or whose effect other factors tell."""


class NoKey(IntarsiaError):
    """A compile has no key without tracing, so its plan cannot be kept; the text says why."""


class Chosen(Protocol):
    """What the factors of every plan come from, whichever door its graph came through."""

    @property
    def config(self) -> Config:
        """The settings in effect."""

    @property
    def host(self) -> Host:
        """The plugins."""

    @property
    def platform(self) -> PlatformSpec:
        """The platform."""

    @property
    def device(self) -> int | None:
        """The device index, or None."""


@frozen
class Asked:
    """One compile, as it is asked for.

    Attributes:
        call: the example call.
        named: (argument path, dimension) -> symbol name.
        device: the device index, or None.
    """

    model: Any
    call: Call
    dynamic: Dynamic
    named: Mapping[tuple[str, int], str]
    config: Config
    host: Host
    platform: PlatformSpec
    device: int | None


def lookup_factors(asked: Asked) -> dict[str, str]:
    """Return the factors of a plan's key.

    Raises:
        NoKey: a compiler, rule or argument has no identity that another process could compare.
    """
    return {
        **chosen_factors(asked), **_torch_state(), **job_factors(),
        **model_factors(asked.model), **_arguments(asked),
    }  # fmt: skip


def _torch_state() -> dict[str, str]:
    """Return the switches of torch that tracing bakes in."""
    modes = [function_identity(mode) for mode in torch_compat.function_modes()]
    return {
        "default dtype": dtype_name(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "function modes": json.dumps(modes),
        "deterministic algorithms": f"{torch.are_deterministic_algorithms_enabled()}, warn only "
        f"{torch.is_deterministic_algorithms_warn_only_enabled()}",
        "float32 matmul precision": torch.get_float32_matmul_precision(),
    }


def chosen_factors(asked: Chosen) -> dict[str, str]:
    """Return the factors that do not depend on the model: torch, device, settings, plugins.

    Raises:
        NoKey: a compiler or rule has no identity that another process could compare.
    """
    return {
        **torch_factors(),
        **platform_factors(asked.platform, asked.device),
        **_settings(asked),
        **_rules(asked),
        **_compilers(asked),
        **_plugins(asked.host),
    }


# ----------------------------------------------------------------------------------- settings, plugins


def _settings(asked: Chosen) -> dict[str, str]:
    found = {}
    plain = asked.config.to_dict()
    for attribute in fields(Config):
        if attribute.name in plain and attribute.name not in _APART:
            value = json.dumps(plain[attribute.name], sort_keys=True, default=repr)
            found[f"setting {attribute.name.replace('_', '-')}"] = value
    passes = pass_plan(asked.host, asked.platform, asked.config)
    found.update(passes.factors())
    # Not in the key of a piece, which it does not change; a plan is checked when it is made.
    least = {spec.name: spec.min_matches for spec in passes.specs if spec.min_matches}
    if least:
        found["matches asked of passes"] = json.dumps(least, sort_keys=True)
    return found


def _rules(asked: Chosen) -> dict[str, str]:
    config = asked.config
    wanted = config.split_at or tuple(asked.platform.rules)
    found = {"rules": json.dumps([_rule_text(v) for v in wanted])}
    named = [v for v in wanted if isinstance(v, str)] + list(config.split_rule)
    known = {spec.name: spec for spec in asked.host.split_rules()}
    for name in named:
        if name in known:
            rule = resolve_reference(known[name].rule, owner=f'split rule "{name}"')
            brings = asked.host.provider(known[name]).module
            found[f"rule {name}"] = _rule_identity(rule, brings)
    return found


def _rule_text(rule: Any) -> str:
    return rule if isinstance(rule, str) else _rule_identity(rule)


def _rule_identity(rule: Any, *brought_by: str) -> str:
    """Return what a rule object is, with the sources of the module that it stands in.

    Raises:
        NoKey: it is a function that reads variables of another one, so that its code does not tell.
    """
    made_of = rule if hasattr(rule, "__qualname__") else type(rule)
    modules = dict.fromkeys(m for m in (made_of.__module__, *brought_by) if m)
    source = source_digest(modules)[:32]
    if hasattr(rule, "assign"):
        factors = json.dumps(dict(rule.factors()), sort_keys=True)
        return f"{function_identity(made_of)} {factors} {source}"
    if getattr(rule, "__closure__", None):
        raise NoKey(
            f"the split rule {function_identity(rule)} cannot be compared in another process",
            why="it reads variables of the function that made it",
            next_step="Give it as an object with factors().",
        )
    return f"{function_identity(rule)} {source}" if callable(rule) else str(rule)


def _compilers(asked: Chosen) -> dict[str, str]:
    config, platform = asked.config, asked.platform
    names = [*(config.compilers or platform.compilers), *config.split_by_support]
    for route in config.routes:
        names += route.compilers
    order = json.dumps(list(config.compilers or platform.compilers))
    found = {"compilers": order, "tier": "quick"}
    for name in dict.fromkeys(names):
        spec = asked.host.compiler(name)
        factors = compiler_factors(spec, asked.host, asked.device)
        if factors is None:
            raise NoKey(
                f'compiler "{name}" is never cached', why="its factors() are None", subject=name
            )
        found.update(factors)
    return found


def _plugins(host: Host) -> dict[str, str]:
    """Return the plugins that may take part in a choice by hooks, with their versions."""
    return {
        f"plugin {s.name}": f"{s.distribution} {s.version} {source_digest([s.module])[:32]}"
        for s in host.deciding_plugins()
    }


# ---------------------------------------------------------------------------------------------- model


def model_factors(model: Any) -> dict[str, str]:
    """Return what is known of a model without tracing it: classes, sources, structure, weights."""
    found = {f"source of {name}": text for name, text in class_sources(model).items()}
    owner = getattr(model, "__self__", model)
    found["replaced in torch"] = replaced_in_torch(model)
    found["forward"] = function_identity(torch_compat.traced_function(model)[0])
    if not isinstance(owner, torch.nn.Module):
        found["model"] = function_identity(model)
        return found
    found["model"] = function_identity(type(owner) if owner is model else model)
    modules = list(owner.named_modules(remove_duplicate=False))
    kinds = [(path, f"{type(m).__module__}.{type(m).__qualname__}") for path, m in modules]
    lengths = {path: _length(m) for path, m in modules if hasattr(m, "__len__")}
    training = [path for path, m in modules if m.training]
    found["model structure"] = plain_digest(kinds)
    found["model ties"] = json.dumps(ties_of(module for _, module in modules))
    found["model lengths"] = json.dumps(lengths, sort_keys=True)
    found["training"] = plain_digest(training) if training else "off"
    found["replaced forwards"] = json.dumps(_replaced_forwards(modules))
    found["hooks"] = json.dumps(_hooks([("every module", None), *modules]))
    found.update(_weights(owner))
    return found


def _replaced_forwards(modules: Iterable[tuple[str, torch.nn.Module]]) -> dict[str, str]:
    """Return the forwards that instances have of their own: what reads `self.forward` calls these."""
    return {
        path: function_identity(vars(module)[name])
        for path, module in modules for name in ("forward", "__call__") if name in vars(module)
    }  # fmt: skip


def _hooks(modules: Iterable[tuple[str, torch.nn.Module | None]]) -> dict[str, list[str]]:
    """Return what runs around forwards, which is traced with them."""
    found: dict[str, list[str]] = {}
    for path, module in modules:
        for kind, hook in torch_compat.forward_hooks(module):
            found.setdefault(path, []).append(f"{kind} {function_identity(hook)}")
    return found


def _length(module: Any) -> int | None:
    try:
        return len(module)
    except Exception:  # of the module's own; a forward need not ask for it
        return None


def _weights(model: torch.nn.Module) -> dict[str, str]:
    """Return what is known of parameters and buffers, each aspect as a factor of its own."""
    names: list[Any] = []
    shapes: list[Any] = []
    dtypes: list[Any] = []
    strides: list[Any] = []
    devices: set[str] = set()
    ties: list[int] = []
    classes: list[str] = []
    first: dict[int, int] = {}
    tensors = [*model.named_parameters(remove_duplicate=False)]
    count = len(tensors)
    buffers: list[tuple[str, torch.Tensor]] = [*model.named_buffers(remove_duplicate=False)]
    for name, value in [*tensors, *buffers]:
        names.append(name)
        shapes.append(tuple(value.shape))
        dtypes.append(dtype_name(value.dtype))
        strides.append(value.stride() if value.layout is torch.strided else str(value.layout))
        devices.add(value.device.type)
        classes.append(tensor_kind(value))
        ties.append(first.setdefault(id(value), len(ties)))
    return {
        "weights": plain_digest([count, *names]), "weights shape": plain_digest(shapes),
        "weights dtype": plain_digest(dtypes), "weights stride": plain_digest(strides),
        "weights device": ", ".join(sorted(devices)), "weights ties": plain_digest(ties),
        "weights class": plain_digest(classes) if any(classes) else "plain",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ arguments


def _arguments(asked: Asked) -> dict[str, str]:
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for path, value in argument_values(asked.call):
        if not is_scalar(value) and not (isinstance(value, tuple) and not value):
            objects[str(path)] = value
        if isinstance(value, torch.Tensor):
            tensors[str(path)] = value
        else:
            values.update(_value(path, value))
    parameters = [[p.name, p.kind, p.has_default] for p in asked.call.parameters]
    return {
        "arguments": plain_digest([parameters, values, list(tensors)]),
        "arguments shape": json.dumps({p: _shape(p, t, asked.named) for p, t in tensors.items()}),
        "arguments dtype": json.dumps({p: dtype_name(t.dtype) for p, t in tensors.items()}),
        "arguments layout": json.dumps({p: _layout(t) for p, t in tensors.items()}),
        "arguments ties": json.dumps(_ties(objects)),
        "dynamic": json.dumps(sorted((p, d, n) for (p, d), n in asked.named.items())),
        "autocast": autocast_of(tensors.values()),
        "grad mode": "off",  # intarsia is inference; the factor is there for the day it is not
    }


def _value(path: Path, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a value that is no tensor as plain data.

    The attributes of an object are left out: a trace may never look at them, and the contract, which
    knows at which it did, is compared before a plan is used.

    Raises:
        NoKey: it is something that another process could not compare.
    """
    is_attribute = any(kind == "." for kind, _ in path.steps)
    if is_scalar(value) or is_opaque(value):
        if not is_attribute:
            yield str(path), _plain(path, value)
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        yield str(path), [kind, len(value) if hasattr(type(value), "__len__") else None]


def _plain(path: Path, value: Any) -> Any:
    try:
        return encode_argument(value, lambda node: None)
    except CannotEncode as error:
        raise NoKey(
            f"the argument {path} cannot be compared in another process", why=str(error)
        ) from error


def _shape(path: str, tensor: torch.Tensor, named: Mapping[tuple[str, int], str]) -> list[Any]:
    return [named.get((path, dim), size) for dim, size in enumerate(tensor.shape)]


def _layout(tensor: torch.Tensor) -> str:
    cls = "" if type(tensor) is torch.Tensor else f"{type(tensor).__qualname__} "
    kind = f"{tensor_kind(tensor)} " if tensor_kind(tensor) else cls
    place = f"{kind}{tensor.device.type} {str(tensor.layout).removeprefix('torch.')}"
    if tensor.layout is not torch.strided:
        return place
    return f"{place} contiguous" if tensor.is_contiguous() else f"{place} {_stride_order(tensor)}"


def _stride_order(tensor: torch.Tensor) -> list[int]:
    # Strides of dynamic sizes differ from call to call; their order does not.
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim))


def _ties(objects: Mapping[str, Any]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for path, value in objects.items():
        groups.setdefault(id(value), []).append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def autocast_of(tensors: Iterable[torch.Tensor]) -> str:
    """Return what autocast does on the devices of some tensors."""
    kinds = sorted({t.device.type for t in tensors})
    active = {
        kind: dtype_name(torch.get_autocast_dtype(kind)) for kind in kinds
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    }  # fmt: skip
    return json.dumps(active) if active else "off"
