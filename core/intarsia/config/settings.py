"""The settings themselves: one frozen record, whose fields say what they mean and what they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, fields, frozen

from intarsia.config import kinds
from intarsia.config.kinds import Invalid, Kind
from intarsia.errors import ConfigError

__all__ = ["Config", "Passes", "PieceMatch", "Plugins", "Route"]


def setting(kind: Kind, default: Any, doc: str, example: str = "", in_file: str = "") -> Any:
    """Return the attrs field of one setting.

    Args:
        kind: what it takes.
        default: its default.
        doc: what it means, for the reference.
        example: a value as it is written in TOML.
        in_file: its key in files, where that is not its name in kebab-case.
    """
    metadata = {"kind": kind, "doc": doc, "example": example, "in_file": in_file}
    if isinstance(default, dict):
        return field(factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def kind_of(attribute: Any) -> Kind:
    """Return the kind of a setting's attrs field."""
    kind: Kind = attribute.metadata["kind"]
    return kind


def key_in_file(attribute: Any) -> str:
    """Return a setting's key as files have it."""
    return str(attribute.metadata["in_file"] or attribute.name.replace("_", "-"))


def default_of(attribute: Any) -> Any:
    """Return the default of a setting's attrs field."""
    factory = getattr(attribute.default, "factory", None)
    return factory() if factory is not None else attribute.default


class _Settings:
    """What every class of settings shares: values given in code are checked and made canonical."""

    def __attrs_post_init__(self) -> None:
        for attribute in fields(type(self)):  # type: ignore[arg-type]  # subclasses are attrs classes
            value = getattr(self, attribute.name)
            if value is None and attribute.default is None:
                continue
            object.__setattr__(self, attribute.name, self._checked(attribute, value))

    def _checked(self, attribute: Any, value: Any) -> Any:
        kind = kind_of(attribute)
        try:
            return kind.parse(value, True)
        except Invalid as problem:
            raise ConfigError(
                f'wrong value for "{attribute.name}" in {type(self).__name__}(...)',
                why=str(problem) or f"expected {kind.expected}, got {value!r}",
                subject=attribute.name,
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able data, in snake_case; what only code can give is left out."""
        return {
            attribute.name: _plain(getattr(self, attribute.name))
            for attribute in fields(type(self))  # type: ignore[arg-type]
            if not kind_of(attribute).code_only
        }


def _plain(value: Any) -> Any:
    if isinstance(value, _Settings):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _spelled(value)


def _spelled(value: Any) -> str:
    """Name an object: "module:name" for functions and classes, else what it calls itself."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}:{name}" if module and name else str(value)


def _table(cls: type) -> Kind:
    def parse(value: Any, trusted: bool) -> Any:
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls(**value)
        raise Invalid

    return Kind("a table", parse, kinds.read_pairs, table=cls)


def unknown(what: str, name: str, place: str, known: list[str]) -> ConfigError:
    """Return the error for a name that does not exist: with the nearest one, else all there are."""
    from difflib import get_close_matches  # only errors need it

    match = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f'did you mean "{match[0]}"?' if match else f"known: {', '.join(sorted(known))}"
    return ConfigError(f'unknown {what} "{name}" in {place}; {hint}', subject=name)


@frozen(kw_only=True, slots=False)
class Plugins(_Settings):
    """Which plugins load."""

    block: tuple[str, ...] = setting(
        kinds.NAMES, (), "Plugins that are never imported, by name or by distribution.", '["acme"]'
    )
    allow: tuple[str, ...] | None = setting(
        kinds.NAMES,
        None,
        "If given, only these plugins load besides the built-in ones, by name or by distribution; one "
        "that is missing or broken is an error.",
        '["acme"]',
    )
    prefer: Mapping[str, str] = setting(
        kinds.PREFER,
        {},
        "Which distribution wins where two bring a plugin or component of one name.",
        '{ inductor = "acme-dist" }',
    )
    autoload: bool = setting(
        kinds.FLAG,
        True,
        "Whether installed plugins load by themselves; if not, only the built-in ones and those in "
        "`allow` do.",
    )


@frozen(kw_only=True, slots=False)
class Passes(_Settings):
    """Which graph passes run."""

    enable: tuple[str, ...] = setting(
        kinds.NAMES, (), "Passes to run besides the platform's.", '["acme-fuse-norm"]'
    )
    disable: tuple[str, ...] = setting(
        kinds.NAMES, (), "Passes that never run.", '["acme-fuse-norm"]'
    )
    limit: int | None = setting(
        kinds.COUNT,
        None,
        "Run only the first so many passes; for finding the one that breaks.",
        "3",
    )


@frozen(kw_only=True, slots=False)
class PieceMatch(_Settings):
    """Which pieces a route is for; every condition that is given must hold."""

    index: int | None = setting(kinds.COUNT, None, "The piece's number.", "3")
    contains: str | None = setting(
        kinds.NAME, None, "An op that the piece contains.", '"aten::_scaled_mm"'
    )
    module: str | None = setting(
        kinds.NAME, None, "A module class or path glob that the piece comes from.", '"layers.*.mlp"'
    )
    device: str | None = setting(kinds.NAME, None, "A device type that the piece uses.", '"cuda"')
    min_nodes: int | None = setting(
        kinds.COUNT, None, "The piece has at least so many operations.", "10"
    )
    kind: str | None = setting(
        kinds.choice("compiled", "splitting"), None, "The kind of piece.", '"splitting"'
    )


def _parse_match(value: Any, trusted: bool) -> PieceMatch:
    if isinstance(value, PieceMatch):
        return value
    return PieceMatch(**_checked_keys(value, PieceMatch, trusted))


def _checked_keys(value: Any, cls: type, trusted: bool) -> dict[str, Any]:
    """Check a table inside a list, where the reader of files does not go, and return it in snake_case."""
    if not isinstance(value, Mapping):
        raise Invalid
    known = {item.name if trusted else key_in_file(item): item for item in fields(cls)}
    parsed = {}
    for key, item in value.items():
        if key not in known:
            raise Invalid(str(unknown("key", str(key), "the table", list(known))))
        if item is None:
            continue  # only code can say None, and there it means: not set
        parsed[known[key].name] = _member(known[key], key, item, trusted)
    return parsed


def _member(attribute: Any, key: str, value: Any, trusted: bool) -> Any:
    kind = kind_of(attribute)
    try:
        return kind.parse(value, trusted)
    except Invalid as problem:
        raise Invalid(
            f'"{key}": {problem if str(problem) else f"expected {kind.expected}, got {value!r}"}'
        ) from None


@frozen(kw_only=True, slots=False)
class Route(_Settings):
    """Which compilers a piece goes to; the first route that matches a piece wins."""

    piece: PieceMatch = setting(
        Kind("a table of conditions", _parse_match),
        PieceMatch(),
        "The pieces that the route is for.",
    )
    compilers: tuple[str, ...] = setting(
        kinds.NAMES, (), "The compilers to try, in order.", '["acme", "inductor"]'
    )


def _parse_routes(value: Any, trusted: bool) -> tuple[Route, ...]:
    if not isinstance(value, list | tuple):
        raise Invalid
    return tuple(
        item if isinstance(item, Route) else Route(**_checked_keys(item, Route, trusted))
        for item in value
    )


_ROUTES = Kind("a list of [[route]] tables, each with `piece` and `compilers`", _parse_routes)


@frozen(kw_only=True, slots=False)
class Config(_Settings):
    """Every setting of one compiled model.

    A value given here counts as given in code where it differs from the default. Mappings are plain
    dicts and must not be changed.
    """

    platform: str = setting(
        kinds.NAME,
        "auto",
        'The platform: "auto" takes it from the device of the model\'s tensors.',
        '"cuda"',
    )
    compilers: tuple[str, ...] | None = setting(
        kinds.NAMES,
        None,
        "Compilers to try for each piece, in order. Not set: the platform's.",
        '["inductor", "eager"]',
    )
    options: Mapping[str, Mapping[str, Any]] = setting(
        kinds.OPTIONS,
        {},
        "Options of each compiler, pass or static-graph backend, by its name. For inductor: any setting of "
        "torch._inductor.config, and direct (call the generated code without AOTAutograd's wrappers where "
        "that is safe; default true).",
        "{ inductor = { max-autotune = true } }",
    )
    routes: tuple[Route, ...] = setting(
        _ROUTES,
        (),
        "Compilers for particular pieces, written as `[[route]]` tables; the first match wins.",
        '[{ piece = { contains = "aten::_scaled_mm" }, compilers = ["acme"] }]',
        in_file="route",
    )
    split_at: tuple[Any, ...] = setting(
        kinds.RULES,
        (),
        "Where to cut: ops (`ns::op`, `ns::op.overload`), Python functions, methods (`.sigmoid`), "
        "module classes or path globs, `torch.Tag` members, or names of registered rules. From code "
        "also functions `(node) -> bool` and rule objects.",
        '["torch.nn.functional.scaled_dot_product_attention", "acme::attention"]',
    )
    split_by: str = setting(
        kinds.NAME,
        "fx",
        "Who cuts at split-at: fx cuts the graph into pieces. A compiler that can partition its own "
        "schedule, as inductor can on GPUs, gets the whole graph and cuts after its fusions; then split-at "
        "may name operators alone.",
        '"inductor"',
    )
    split_by_support: tuple[str, ...] = setting(
        kinds.NAMES,
        (),
        "Compilers whose supported operations are grouped into regions of their own.",
        '["acme"]',
    )
    split_rule: tuple[str, ...] = setting(
        kinds.NAMES, (), "Registered split rules to apply, by name.", '["acme-attention"]'
    )
    boxes: Mapping[str, tuple[int, ...]] = setting(
        kinds.ENDPOINTS,
        {},
        "Ends of the ranges that are compiled, for each symbol: `[8, 256]` makes 1..8 and 9..256. "
        "Symbols combine as a product.",
        "{ tokens = [8, 256, 8192] }",
    )
    sizes: Mapping[str, tuple[int, ...]] = setting(
        kinds.SIZES, {}, "Sizes that are compiled for exactly.", "{ tokens = [1, 2, 4] }"
    )
    box: tuple[Mapping[str, tuple[int, int]], ...] = setting(
        kinds.BOXES,
        (),
        "An explicit list of shape boxes instead of the product, written as `[[box]]` tables.",
        "[{ tokens = [1, 8], batch = [1, 4] }]",
    )
    dynamic_ranges: Mapping[str, tuple[int, int]] = setting(
        kinds.RANGES,
        {},
        "The lowest and highest value that each symbol may have.",
        "{ tokens = [1, 8192] }",
    )
    uncovered: str = setting(
        kinds.choice("general", "pad", "eager", "error"),
        "general",
        "What happens to a call outside every box: a general compilation, padding to the next "
        "compiled size, an eager run, or an error.",
        '"error"',
    )
    rows_independent: tuple[str, ...] = setting(
        kinds.NAMES,
        (),
        "Symbols whose rows do not influence each other, so that inputs may be padded.",
        '["tokens"]',
    )
    static_graph: str = setting(
        kinds.choice("none", "piecewise", "full", "full-and-piecewise"),
        "none",
        "Which static graphs are recorded: of each compiled piece, of the whole forward, or of both, so "
        "that each step can choose.",
        '"piecewise"',
    )
    static_graph_backend: str | None = setting(
        kinds.NAME, None, "The static-graph backend. Not set: the platform's.", '"cuda"'
    )
    static_graph_budget: Mapping[str, int] = setting(
        kinds.AMOUNTS,
        {},
        "How much of each resource recordings may take. What is not named here is limited by what the "
        "backend says is left.",
        "{ bytes = 2000000000 }",
    )
    static_inputs: Mapping[str, str] = setting(
        kinds.choices("argument", "copy", "same-address", "general"),
        {},
        "What a replay does with an argument that is at another address than it was recorded at: copy it "
        "in, or run the call without static graphs (same-address: the caller promises that this does not "
        "happen, so it warns; general: it may happen). Arguments that the model writes to are never copied.",
        '{ ids = "copy", cache = "same-address" }',
    )
    outputs: str = setting(
        kinds.choice("owned", "borrowed"),
        "owned",
        "Whose the results of a replay are: the caller's own, or the recording's, valid until the next "
        "call of a model that records into the same pool, which may be given them.",
        '"borrowed"',
    )
    op_safety: Mapping[str, str] = setting(
        kinds.choices("operation", "safe", "break"),
        {},
        "Whether operations may be part of a recording, over what their plugins say.",
        '{ "acme::attention" = "safe" }',
    )
    unknown_ops: str = setting(
        kinds.choice("refuse", "allow"),
        "refuse",
        "Whether a recording may hold custom operations of which nobody says that they are safe.",
        '"allow"',
    )
    passes: Passes = setting(_table(Passes), Passes(), "Which graph passes run.")
    pass_manager: str | None = setting(
        kinds.NAME,
        None,
        "The pass manager, which orders and runs the passes. Not set: the platform's, else the built-in one.",
        '"acme"',
    )
    plugins: Plugins = setting(_table(Plugins), Plugins(), "Which plugins load.")
    strict: bool = setting(
        kinds.FLAG, False, "Raise where a compiler fails, instead of trying the next one."
    )
    check: str = setting(
        kinds.choice("first", "always", "values", "none"),
        "first",
        "When a piece's results are compared with the recorded dtype, shape, stride and device: on "
        "the first call for each box, on every call, on every call together with the frozen Python "
        "values, or never.",
        '"always"',
    )
    verify: int = setting(
        kinds.COUNT,
        0,
        "How many calls of each compiled piece, for each box, are compared with an eager run of the same "
        "inputs. A piece that differs runs eagerly from then on, and the caller gets eager's result.",
        "2",
    )
    regional: bool = setting(
        kinds.FLAG, True, "Trace repeated blocks once instead of once for each repetition."
    )
    dedupe: bool = setting(kinds.FLAG, True, "Compile equal pieces once.")
    artifact: str = setting(
        kinds.choice("quick", "package", "tiered"),
        "tiered",
        "Which artifact is made by a compiler that has two (Inductor): the one that compiles fast, the "
        "one that loads and runs fast, or first the one and then, in the background and only where a "
        "cache keeps it, the other.",
        '"quick"',
    )
    cache: bool | str | tuple[str, ...] = setting(
        kinds.FLAG_OR_PATH,
        True,
        "Where artifacts are kept: nowhere, in the user's cache directory, at a path, at a URL that "
        "fsspec reaches (with the user's cache directory in front), or in a list of these in order.",
        '["/var/cache/intarsia", "s3://bucket/intarsia"]',
    )
    cache_key_file: str | None = setting(
        kinds.PATH,
        None,
        "A file with a secret. If given, every entry carries an HMAC made with it, and entries without "
        "the right one are not used.",
        '"/etc/intarsia/cache.key"',
    )
    cache_wait: float = setting(
        kinds.SECONDS,
        600.0,
        "How many seconds a process waits for another one that compiles the same, before it compiles "
        "itself.",
        "60",
    )
    exchange_deadline: float = setting(
        kinds.SECONDS,
        600.0,
        "How many seconds a rank waits for the other ranks where they compare plans (`exchange`); then all "
        "raise. It must cover the longest cold compile of a rank.",
        "60",
    )
    workers: int | None = setting(
        kinds.COUNT,
        None,
        "How many compile workers there may be: 0 compiles in this process. Not set: as many as cores "
        "and free memory allow, where there is enough to compile.",
        "2",
    )
    compile_timeout: float = setting(
        kinds.SECONDS,
        1200.0,
        "How many seconds one compile task may take in a worker; in this process there is no limit.",
        "300",
    )
    deterministic: bool = setting(
        kinds.FLAG, False, "Prefer choices that give the same result bit for bit on every run."
    )
    max_tasks_warning: int = setting(
        kinds.COUNT,
        64,
        "Warn, with the table, where more (piece, box) tasks are planned than this.",
    )
    name: str | None = setting(
        kinds.TEXT, None, "What reports and logs call the model.", '"decoder"'
    )
    dump: str | None = setting(
        kinds.PATH, None, "A folder that graphs, plans and generated code are written to.", '"dump"'
    )
    executor: Any = setting(
        kinds.EXECUTOR,
        None,
        "What runs the compile tasks. `torch.compile` uses it where "
        "its work runs in other processes, which one says by an attribute `other_processes` that "
        "is true.",
    )
