"""One compile: what was asked for, and where it is compiled."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from intarsia.capture.call import bind_call, describe
from intarsia.capture.dynamic import Dynamic, named_dims
from intarsia.capture.structure import Path, walk
from intarsia.config import Config, ResolvedConfig
from intarsia.host import Host
from intarsia.place import Place, check_names, effective_settings
from intarsia.report.events import EventStream

_SERIAL = itertools.count(1)


class CompileJob:
    """What every compile knows before anything is split or loaded, whichever door it came through.

    Attributes:
        name: what logs, reports and dumps call the model.
        place: the platform, device and settings in effect.
    """

    name: str
    host: Host
    events: EventStream
    place: Place

    @property
    def resolved(self) -> ResolvedConfig:
        """The settings in effect, and where each comes from."""
        return self.place.resolved

    @property
    def config(self) -> Config:
        """The settings in effect."""
        return self.place.resolved.config


class Job(CompileJob):
    """One call of `intarsia.compile`.

    Attributes:
        call: the example call.
        named: (argument path, dimension) -> symbol name.
    """

    def __init__(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic,
        resolved: ResolvedConfig, host: Host | None, listeners: tuple[Any, ...],
    ) -> None:  # fmt: skip
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self.dynamic = dynamic
        self.name = resolved.config.name or f"{describe(model)}-{next(_SERIAL)}"
        self.host = host if host is not None else Host(resolved)
        self.events = EventStream(self.name, (*listeners, self.host.emit))
        self.place = effective_settings(resolved, self.host, self._tensors())
        check_names(self.config, self.host)
        self.call = bind_call(model, args, kwargs)
        self.named: Mapping[tuple[str, int], str] = {
            (str(d.path), d.dim): d.name for d in named_dims(self.dynamic, self.call.values)
        }

    def _tensors(self) -> list[torch.Tensor]:
        values = [v for _, v in walk(list(self.args), Path("args"))]
        values += [v for _, v in walk(dict(self.kwargs), Path("kwargs"))]
        found = [v for v in values if isinstance(v, torch.Tensor)]
        if isinstance(self.model, torch.nn.Module):
            found += [*self.model.parameters(), *self.model.buffers()]
        return found
