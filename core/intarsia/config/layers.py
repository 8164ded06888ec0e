"""Settings in layers: who set each key, and which layer wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, TypeAlias

from attrs import evolve, field, fields, frozen

from intarsia.config.kinds import Invalid
from intarsia.config.settings import Config, default_of, key_in_file, kind_of, unknown
from intarsia.errors import ConfigError

__all__ = ["Layer", "Level", "ResolvedConfig", "Source"]

Path: TypeAlias = tuple[str, ...]
"""A key as its parts, in snake_case: ("plugins", "block")."""


class Level(IntEnum):
    """Where a setting comes from, lowest first: a higher level wins."""

    DEFAULT = 0
    PLATFORM = 10
    PLUGIN = 20
    """What a plugin's `intarsia_adjust_config` asks for."""
    FILE = 30
    ENVIRONMENT = 40
    CODE = 50

    @property
    def by_user(self) -> bool:
        """Whether a person set it, so that no plugin may override it."""
        return self >= Level.FILE


@frozen(slots=False)
class Source:
    """Where a table of settings stands, for messages and for what it may contain."""

    level: Level
    place: Callable[[Path], str]
    """`(table) -> text`, for example "pyproject.toml [tool.intarsia.plugins]"."""

    @property
    def trusted(self) -> bool:
        """Whether Python objects and "module:name" strings are accepted."""
        return self.level not in (Level.FILE, Level.ENVIRONMENT)

    def key(self, attribute: Any) -> str:
        """Return a setting's key the way it is written here: kebab-case in files, snake_case in code."""
        return key_in_file(attribute) if self.level is Level.FILE else str(attribute.name)

    def named(self, key: str, table: Path) -> str:
        """Return a key as a message names it: with its table, where the place does not tell the table."""
        return key if self.level is Level.FILE else ".".join((*table, key))


@frozen(slots=False)
class Layer:
    """The settings of one source: key -> (value, origin)."""

    level: Level
    values: Mapping[Path, tuple[Any, str]]


def read_table(data: Any, source: Source) -> Layer:
    """Check a table of settings and return it as a layer.

    Raises:
        ConfigError: a key is unknown or a value does not fit; the message has the place and the key.
    """
    return Layer(source.level, dict(_walk(data, Config, (), source)))


def _walk(
    data: Any, cls: type, table: Path, source: Source
) -> Iterable[tuple[Path, tuple[Any, str]]]:
    known = {source.key(item): item for item in fields(cls)}
    for key, value in data.items():
        attribute = known.get(key)
        if attribute is None:
            names = [source.named(name, table) for name in known]
            raise unknown("key", source.named(str(key), table), source.place(table), names)
        if value is None:
            continue  # only code can say None, and there it means: not set
        path = (*table, attribute.name)
        yield from _spread(attribute, path, value, source)


def _spread(
    attribute: Any, path: Path, value: Any, source: Source
) -> Iterable[tuple[Path, tuple[Any, str]]]:
    """Yield one entry, or one for each key where the value is a table that merges key by key."""
    kind = kind_of(attribute)
    if isinstance(kind.table, type):
        if isinstance(value, kind.table):
            value = changed(value)
        if not isinstance(value, Mapping):
            raise wrong(attribute, path, value, source)
        yield from _walk(value, kind.table, path, source)
        return
    parsed = parse(attribute, path, value, source)
    origin = source.place(path[:-1])
    if kind.table != "options":
        yield path, (parsed, origin)
        return
    for name, options in parsed.items():
        for option, item in options.items():
            yield (*path, name, option), (item, source.place((*path, name)))


def parse(attribute: Any, path: Path, value: Any, source: Source) -> Any:
    """Return the value in canonical form.

    Raises:
        ConfigError: it does not fit.
    """
    kind = kind_of(attribute)
    if kind.code_only and not source.trusted:
        raise wrong(attribute, path, value, source, why="it can be given from Python only")
    try:
        return kind.parse(value, source.trusted)
    except Invalid as problem:
        raise wrong(attribute, path, value, source, why=str(problem)) from None


def wrong(attribute: Any, path: Path, value: Any, source: Source, why: str = "") -> ConfigError:
    """Return the error for a value that does not fit."""
    key = source.named(source.key(attribute), path[:-1])
    return ConfigError(
        f'wrong value for "{key}" in {source.place(path[:-1])}',
        why=why or f"expected {kind_of(attribute).expected}, got {value!r}",
        subject=spelled(path),
    )


def changed(settings: Any) -> dict[str, Any]:
    """Return what a record of settings has that differs from the defaults."""
    pairs = ((item, getattr(settings, item.name)) for item in fields(type(settings)))
    return {item.name: value for item, value in pairs if value != default_of(item)}


def spelled(path: Path) -> str:
    """Return a key as people write it: `plugins.block`, `options.inductor.max-autotune`."""
    if path[0] == "options":
        # The middle part is a compiler's name, which is kept as it is.
        return ".".join((*path[:-1], path[-1].replace("_", "-")))
    return ".".join(part.replace("_", "-") for part in path)


@frozen(slots=False)
class ResolvedConfig:
    """The settings in effect, and where each comes from.

    Attributes:
        layers: what each source said, in the order in which it was added.
        config: what came out.
    """

    layers: tuple[Layer, ...] = ()
    config: Config = field(init=False)
    _origins: Mapping[Path, tuple[Level, str]] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        values, origins = _merge(self.layers)
        object.__setattr__(self, "_origins", origins)
        object.__setattr__(self, "config", Config(**_nested(values)))
        self._refuse_both_kinds_of_boxes()

    def with_layer(
        self,
        values: Mapping[str, Any] | Config,
        origin: str,
        level: Level = Level.PLATFORM,
    ) -> ResolvedConfig:
        """Return the settings with one more layer; keys in snake_case.

        Among layers of one level the one added last wins.

        Raises:
            ConfigError: a key is unknown or a value does not fit; the message names the origin.
        """
        table = changed(values) if isinstance(values, Config) else values
        layer = read_table(table, Source(level, lambda _: origin))
        return evolve(self, layers=(*self.layers, layer)) if layer.values else self

    def with_change(self, key: str, value: Any, *, plugin: str) -> ResolvedConfig:
        """Return the settings with a plugin's change of one key, dotted for keys in tables.

        Raises:
            ConfigError: a user has set the key to something else, or the change does not fit.
        """
        path = tuple(key.replace("-", "_").split("."))
        if path[0] == "options" and len(path) > 2:
            path = ("options", key[len("options.") : key.rindex(".")], path[-1])
        origin = f"plugin {plugin}"
        table: Any = value
        for part in reversed(path):
            table = {part: table}
        layer = read_table(table, Source(Level.PLUGIN, lambda _: origin))
        for changed_path, (new, _) in layer.values.items():
            self._refuse_override(changed_path, new, plugin)
        return evolve(self, layers=(*self.layers, layer))

    def _refuse_override(self, path: Path, value: Any, plugin: str) -> None:
        level, origin = self._origins.get(path, (Level.DEFAULT, "default"))
        if level.by_user and _at(self.config, path) != value:
            raise ConfigError(
                f'plugin "{plugin}" wants to change "{spelled(path)}" to {value!r}',
                why=f"it was set to {_at(self.config, path)!r} in {origin}",
                next_step=f'Remove the setting, or block the plugin: [plugins] block = ["{plugin}"]',
                subject=spelled(path),
            )

    def origin(self, key: str) -> str:
        """Return where a key's value comes from; dotted for keys in tables ("plugins.block")."""
        return self._origin(key)[1]

    def level(self, key: str) -> Level:
        """Return the level that a key's value comes from."""
        return self._origin(key)[0]

    def _origin(self, key: str) -> tuple[Level, str]:
        wanted = key.replace("_", "-")
        for path, found in self._origins.items():
            if spelled(path).replace("_", "-") == wanted:
                return found
        return Level.DEFAULT, "default"

    def rows(self) -> list[tuple[str, Any, str]]:
        """Return (key, JSON-able value, origin) for every setting, tables key by key."""
        return list(_rows(self.config.to_dict(), self._origins, Config, ()))

    def _refuse_both_kinds_of_boxes(self) -> None:
        if self.config.box and self.config.boxes:
            raise ConfigError(
                'both "box" and "boxes" are set',
                why=f"box in {self.origin('box')}, boxes in {self.origin('boxes')}",
                next_step="Keep one: `boxes` combines symbols as a product, `box` lists the boxes",
                subject="box",
            )


def _merge(
    layers: Iterable[Layer],
) -> tuple[dict[Path, Any], dict[Path, tuple[Level, str]]]:
    values: dict[Path, Any] = {}
    origins: dict[Path, tuple[Level, str]] = {}
    for layer in sorted(layers, key=lambda layer: layer.level):
        for path, (value, origin) in layer.values.items():
            values[path] = value
            origins[path] = (layer.level, origin)
    return values, origins


def _nested(values: Mapping[Path, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        table = nested
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = value
    return nested


def _at(config: Config, path: Path) -> Any:
    value: Any = config
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    return value


def _rows(
    data: Mapping[str, Any], origins: Mapping[Path, tuple[Level, str]], cls: type, table: Path
) -> Iterable[tuple[str, Any, str]]:
    kinds = {item.name: kind_of(item) for item in fields(cls)}
    for name, value in data.items():
        path = (*table, name)
        kind = kinds[name].table
        if isinstance(kind, type):
            yield from _rows(value, origins, kind, path)
        elif kind == "options" and value:
            for found, (_, origin) in origins.items():
                if found[0] == name:
                    yield spelled(found), value[found[1]][found[2]], origin
        else:
            yield spelled(path), value, origins.get(path, (Level.DEFAULT, "default"))[1]
