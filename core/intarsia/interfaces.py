"""The records that plugins return and the Protocols that their factories build.

Nothing here imports torch. A field typed `Reference` may hold the object itself or a string
`"module:name"`, which is imported when the object is first needed; a plugin that wants to stay cheap to
discover uses strings for everything heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from attrs import Factory, field, frozen

from intarsia.words import one_of, some_of

if TYPE_CHECKING:
    import torch
    from torch import fx

API_VERSION: tuple[int, int] = (1, 0)
"""The plugin API that this intarsia speaks: (major, minor)."""

T = TypeVar("T")
Reference: TypeAlias = "T | str"
"""An object, or the string "module:name" that names it."""

Box: TypeAlias = "Mapping[str, tuple[int, int]]"
"""A shape box: symbol name -> closed range (lowest, highest). An empty box has no symbols."""

Form: TypeAlias = Literal["torch", "aten-functional", "aten-mutable", "exported"]
"""What a compiler takes: a graph of torch calls, of ATen calls without or with mutation, or a
`torch.export.ExportedProgram`."""

Stage: TypeAlias = Literal[
    "graph", "piece", "piece-aten", "inductor-pre-grad", "inductor-joint",
    "inductor-post-grad-before", "inductor-post-grad-after",
]  # fmt: skip
"""Where a pass runs."""

Weights: TypeAlias = Literal["input", "bake"]

CutKind: TypeAlias = Literal["op", "region"]

Safety: TypeAlias = Literal["safe", "break"]

Tier: TypeAlias = Literal["quick", "package"]
"""Which artifact is wanted: the one that is made fast, or the one that loads and runs fast."""


@frozen
class Decision:
    """A yes or no with its reason; true or false in a condition."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


def available() -> Decision:
    """Answer yes: the default of every `available` field."""
    return Decision(True)


# --------------------------------------------------------------------------- what a piece looks like


@frozen
class TensorInfo:
    """The metadata of one tensor that enters or leaves a piece.

    Sizes are ints, or strings that are expressions over the symbols of the piece ("n", "2*n + 1").
    """

    dtype: str
    shape: tuple[int | str, ...]
    stride: tuple[int | str, ...]
    device_type: str
    storage_offset: int | str = 0
    kind: Literal["activation", "weight", "buffer"] = "activation"
    alias_class: int | None = None
    """Tensors of one piece with the same number may share memory; None: shares with no other."""
    subclass: str | None = None
    """The qualified name of a tensor subclass, or None for a plain tensor or Parameter."""
    requires_grad: bool = False
    device_slot: int = 0
    """Which of the piece's devices; 0 is its own. A model on several devices of one type is refused for
    now, so it is always 0."""


@frozen
class IntInfo:
    """An int that enters or leaves a piece: a number, or an expression over the symbols."""

    expression: int | str


ValueInfo: TypeAlias = TensorInfo | IntInfo


@frozen
class PieceSignature:
    """All that a load needs to know of a piece: plain data, no graph and no fake tensors.

    The callable that a compiler returns takes the `inputs` positionally, in order (ints as Python
    ints), and returns a tuple or list with one value per entry of `outputs`.
    """

    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    box: Box
    mutated: tuple[int, ...] = ()
    """Indices of the inputs that the piece writes to."""
    options: Mapping[str, Any] = Factory(dict)
    """The compiler's own options, defaults filled in."""
    grad: bool = False

    def exported_inputs(self, baked: Collection[int] = ()) -> tuple[int, ...]:
        """Return which inputs a program of the form "exported" takes: tensors that are not baked in.

        Sizes are none of its inputs: it reads them off the tensors.
        """
        return tuple(
            i for i, value in enumerate(self.inputs)
            if isinstance(value, TensorInfo) and i not in baked
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the signature as JSON-able data."""
        from intarsia.compiling.plain import signature_to_dict  # cycle: it builds these records

        return signature_to_dict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> PieceSignature:
        """Rebuild a signature from `to_dict`'s data."""
        from intarsia.compiling.plain import signature_from_dict  # cycle, as above

        return signature_from_dict(data)


@frozen
class OpView:
    """One operation of a piece, as `supports` and the split rules see it."""

    name: str
    """The operation's name: "aten::mm.default", "torch.nn.functional.silu", ".view", "operator.add"."""
    node: fx.Node
    dtypes: tuple[str, ...] = ()
    device_types: tuple[str, ...] = ()
    mutates: bool = False
    dynamic: bool = False
    """Whether a size of an input or output is symbolic."""


@frozen
class CompileRequest:
    """One piece and one box, for one compiler.

    Attributes:
        graph: the piece in `torch` form; its placeholders are the signature's inputs and its output is
            a tuple. A compiler may change it: the core hands out a copy.
        fake_inputs: fake tensors and SymInts (ints where the box fixes them), one per input.
        signature: the piece as plain data.
        passes: the passes for this piece and box, in order. Those of the stage "piece" have run over
            `graph`, those of "piece-aten" run in `lower`; Inductor's own stages are Inductor's.
        device: the device index, or None for a device type without indices.
        name: where the piece comes from, for logs: "model.piece_3".
        kind: "compiled" or "splitting".
        hints: sizes that the fake inputs have because not every size in the box will occur.
        weights: input index -> tensor for a compiler that bakes weights in, else None. The callable
            is given all inputs nevertheless.
    """

    graph: fx.GraphModule
    fake_inputs: tuple[Any, ...]
    signature: PieceSignature
    passes: tuple[PassSpec, ...] = ()
    device_type: str = "cpu"
    device: int | None = None
    name: str = "piece"
    kind: Literal["compiled", "splitting"] = "compiled"
    key: str = ""
    wants_artifact: bool = True
    """Whether the artifact will be kept; a compiler may skip making one where it is not."""
    hints: Mapping[str, int] = Factory(dict)
    tier: Tier = "quick"
    """Which artifact to make; "package" only for a compiler whose spec has it in `tiers`."""
    weights: Mapping[int, torch.Tensor] | None = field(default=None, eq=False, repr=False)
    pass_setup: PassSetup | None = field(default=None, eq=False, repr=False)
    """What runs `passes`; None where there are none."""
    pass_runs: list[PassRun] = field(factory=list, eq=False, repr=False)
    """How they went so far."""
    _lowered: dict[str, Any] = field(factory=dict, eq=False, repr=False, alias="_lowered")

    @property
    def box(self) -> Box:
        """The box that this request compiles for."""
        return self.signature.box

    @property
    def options(self) -> Mapping[str, Any]:
        """The compiler's options."""
        return self.signature.options

    @property
    def fake_mode(self) -> Any:
        """The FakeTensorMode of `fake_inputs`; None where there is no tensor."""
        from intarsia.compiling.transport import fake_mode_of  # needs torch

        return fake_mode_of(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """The modules and ops outside torch that the piece calls in the forms that there are by now, as
        `CompileResult.needs` wants them."""
        from torch import fx

        from intarsia.compiling.transport import needs_of  # needs torch

        forms = [self.graph, *(f for f in self._lowered.values() if isinstance(f, fx.GraphModule))]
        return tuple(dict.fromkeys(need for form in forms for need in needs_of(form)))

    def lower(self, form: Form) -> Any:
        """Return the piece in another form: a GraphModule, or an ExportedProgram for "exported".

        The result is made once per (distinct piece, box, form) and shared by every compiler that asks,
        so copy it before changing it; "torch" is `graph`, a copy of this compiler's own. It is made anew
        where the compiler before noted conditions on sizes in the fake mode.

        Raises:
            CompileRejected: the piece cannot be brought into that form.
        """
        from intarsia.compiling.lowering import lower  # heavy, and only some compilers want it

        return lower(self, form)

    def to_bytes(self) -> bytes:
        """Return the request as bytes that `from_bytes` restores in another process.

        Raises:
            CompileFailed: something has no plain form: a constant of the graph, baked weights, or a pass
                whose factory or boxes are not "module:name" strings.
        """
        from intarsia.compiling.transport import request_to_bytes

        return request_to_bytes(self)

    @staticmethod
    def from_bytes(data: bytes) -> CompileRequest:
        """Restore a request that `to_bytes` wrote.

        Raises:
            CompileFailed: the bytes name a module or op that this process cannot import.
        """
        from intarsia.compiling.transport import request_from_bytes

        return request_from_bytes(data)


@frozen
class CompileResult:
    """What a compiler returns.

    Attributes:
        callable: takes the piece's inputs positionally and returns a tuple or list. A callable with a
            true attribute `boxed_call` takes one list of the inputs instead, which it may clear.
        artifact: bytes from which `Compiler.load` restores the callable, or None where there is none.
        needs: modules and ops that a load requires ("module:acme_kernels", "op:acme::attention").
        note: one line for `explain()`, for example which call path was taken.
        tier: which artifact it is.
        passes: how the passes over the piece went; the core fills it in.
    """

    callable: Callable[..., Sequence[Any]]
    artifact: bytes | None = None
    needs: tuple[str, ...] = ()
    note: str = ""
    tier: Tier = "quick"
    passes: tuple[PassRun, ...] = ()

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Call the piece on its inputs, whichever way the callable takes them."""
        if getattr(self.callable, "boxed_call", False):
            return self.callable(list(inputs))
        return self.callable(*inputs)


class Compiler(Protocol):
    """Turns pieces into callables. One instance per (process, options, device).

    A compiler may also have:

    - `bind(callable, weights) -> callable`, called once per piece *instance* after a load, and again
      on `rebind()`; `weights` maps input index -> tensor, and the returned callable takes the same
      inputs. Pre-pack weights here: equal pieces still share one artifact.
    - `loads(tier) -> Decision`: whether artifacts of a tier can be loaded in this process, asked before
      packages are made in the background.
    - `close()`, called once, when the interpreter exits: models of one process share the instance.

    A callable may have `close()` too. That of `CompileResult.callable` is called when the compiled model
    is closed; that of what `bind` returned also after a rebind, when the last call that uses it is done.
    """

    def compile(self, request: CompileRequest) -> CompileResult:
        """Compile a piece.

        Raises:
            CompileRejected: this compiler does not take the piece; the next one in the route is asked.
        """

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Restore a callable from an artifact, without a graph."""

    def factors(self) -> Mapping[str, str] | None:
        """Return named parts of the compiler's identity for the cache key; None: never cached."""

    def supports(self, op: OpView) -> Decision:
        """Say whether the compiler takes an operation."""


# --------------------------------------------------------------------------------------- compilers


@frozen
class Option:
    """One option of a compiler or pass."""

    default: Any
    type: type | tuple[type, ...] = object
    doc: str = ""
    in_key: bool = True
    """Whether the option changes what is compiled, and so belongs in the cache key."""


@frozen
class Capabilities:
    """What a compiler can do. What is not claimed is not asked of it."""

    dynamic_shapes: bool = False
    """Takes boxes with more than one point; otherwise it only gets point boxes (sizes and `pad`)."""
    mutation: bool = False
    """Takes pieces that write to their inputs."""
    custom_ops: bool = False
    """Takes operations outside ATen."""
    subclasses: bool = False
    """Takes tensor subclasses as inputs and outputs."""
    concurrent: bool = False
    """`compile` may run in two threads of one process at a time."""
    workers: bool = True
    """May compile in another process."""
    light: bool = False
    """`compile` takes milliseconds and runs Python alone, and what it makes calls torch's operators: it is
    never worth a worker, and takes no process down, so the crash journal has no notes of it."""
    weights: Weights = field(default="input", validator=one_of(Weights))
    """Whether weights stay inputs or become part of the artifact. A compiler that bakes them gets them
    as `CompileRequest.weights`, in this process only; equal pieces with other weights are compiled each on
    its own, nothing of it is cached, and a weight that is replaced later is a ContractError. A write into a
    baked weight's memory is not noticed. An option "weights" of the compiler, "input" or "bake", decides in
    the place of this."""
    partitions: tuple[str, ...] = ()
    """Device types on which it can cut its own schedule at operations, after its fusions: with
    `split-by = NAME` it gets the whole graph, and the operations in its option `partition_at`. What it
    returns is then a `PartitionedCall`."""


class PartitionedCall(Protocol):
    """What a compiler returns that has cut its own schedule; it takes one list of inputs (`boxed_call`)."""

    partitions: Sequence[Callable[[list[Any]], Sequence[Any]]]
    """What runs between the operations that it was cut at, in order."""

    def with_partitions(
        self, partitions: Sequence[Callable[[list[Any]], Sequence[Any]]]
    ) -> Callable[[list[Any]], Sequence[Any]]:
        """Return the same call with others in the place of the partitions; this one stays as it is."""


@frozen
class CompilerSpec:
    """A compiler, as `intarsia_compilers` returns it.

    Attributes:
        name: what config calls it.
        version: enters the cache key.
        devices: device types it compiles for; empty means any.
        dtypes: dtypes it takes ("float32", ...); empty means any.
        form: what it wants to be given.
        factory: `(options, device) -> Compiler`, called once per (process, options, device).
        options: option name -> Option; the name "*" takes options that are not listed, which the factory
            checks itself.
        available: whether it can be used on this machine.
        supports: `(OpView) -> Decision` for split-by-support without building the compiler; None: ask
            the compiler itself.
        capabilities: what it can do.
        environment: names of the environment variables that change what it makes.
        install_hint: what to tell a user who lacks its dependency.
        tiers: the artifacts that it makes. One that has "package" is asked for it in a background worker;
            `load` takes the artifacts of every tier.
        uses_others: whether it compiles by other compilers: its factory is then called with
            `(options, device, others)`, the last an `OtherCompilers`. It compiles in the process that asks.
    """

    name: str
    version: str
    factory: Reference[Callable[..., Compiler]]
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    form: Form = field(default="torch", validator=one_of(Form))
    options: Mapping[str, Option] = Factory(dict)
    available: Reference[Callable[[], Decision]] = available
    supports: Reference[Callable[[OpView], Decision]] | None = None
    capabilities: Capabilities = Capabilities()
    environment: tuple[str, ...] = ()
    install_hint: str = ""
    tiers: tuple[Tier, ...] = field(default=("quick",), validator=some_of(Tier))
    uses_others: bool = False


class OtherCompilers(Protocol):
    """The compilers of a host, for a compiler that compiles by others: by name, with the options that
    config gives them. Compilers that use others themselves are not among them."""

    def names(self, device_type: str | None = None) -> tuple[str, ...]:
        """Return what the platforms list by default, in order; of one device type, or of all."""

    def factors(self, name: str) -> Mapping[str, str] | None:
        """Return a compiler's whole identity, options and plugin with it; None: it is never cached.

        Raises:
            ConfigError, PluginError: nobody brings it, or it cannot be used here.
        """

    def compile(self, name: str, request: CompileRequest) -> CompileResult:
        """Compile the piece of a request with another compiler, with fake inputs of its own.

        Raises:
            CompileRejected: it does not take the piece, bakes weights in, or relied on sizes.
            Exception: whatever it raises.
        """

    def load(
        self, name: str, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Restore what another compiler made."""

    def bind(
        self, name: str, function: Callable[..., Any], weights: Mapping[int, torch.Tensor]
    ) -> Callable[..., Any]:
        """Return a callable bound to weights; the same one where that compiler has no `bind`."""

    def supports(self, name: str, op: OpView) -> Decision:
        """Say whether another compiler takes an operation."""

    def device_ops(self, device_type: str) -> DeviceOps:
        """Return the device operations of the platform with the highest priority for a device type."""


# --------------------------------------------------------------------------------------- platforms


class Stream(Protocol):
    """An order of work on a device: a context in which it is current, as `torch.Stream` is."""

    def __enter__(self) -> Any:
        """Make it current."""

    def __exit__(self, *error: Any) -> Any:
        """Make the one before current again."""

    def synchronize(self) -> None:
        """Wait until all work on it is done."""


class DeviceOps(Protocol):
    """What the core does to a device. The default is built over `torch.accelerator`."""

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""

    def event(self) -> Any:
        """Return a new timing event with `record()` and `elapsed_time(other)` in milliseconds."""

    def stream(self) -> Stream:
        """Return a side stream: entered, it is current; a static-graph backend records on it."""

    def memory(self) -> Mapping[str, int]:
        """Return bytes: at least "allocated", "reserved" and "free" where they are known."""

    def empty_cache(self) -> None:
        """Return cached memory to the device."""

    def device_count(self) -> int:
        """Return the number of devices of this type."""

    def guard(self, index: int) -> AbstractContextManager[Any]:
        """Return a context in which device `index` is current."""


def accepts_equal(built_for: Mapping[str, str], here: Mapping[str, str]) -> Decision:
    """Accept an artifact only where every trait is equal: the default of `PlatformSpec.accepts`."""
    for name in sorted({*built_for, *here}):
        if built_for.get(name) != here.get(name):
            was, now = built_for.get(name), here.get(name)
            return Decision(False, f"trait {name}: built for {was!r}, here {now!r}")
    return Decision(True)


@frozen
class PlatformSpec:
    """A device type and its defaults, as `intarsia_platforms` returns it.

    Attributes:
        name: what config calls it.
        device_type: torch's device type ("cpu", "cuda", "acme").
        available: whether the device can be used here; must not initialise it.
        traits: `(device index or None) -> {name: value}`; enters the cache key.
        accepts: `(built_for, here) -> Decision` on two sets of traits, asked when an artifact is loaded.
        device: `(index or None) -> DeviceOps`; None: the default over `torch.accelerator`.
        compilers: default compilers in order.
        rules: default split rules: op names, or names of registered rules.
        passes: default passes, by name.
        pass_manager: name of the pass manager that replaces the built-in one, or None.
        static_graph: name of its static-graph backend, or None.
        config_defaults: other defaults, below the user's file.
        environment: names of environment variables that change what is compiled.
        priority: with `platform = "auto"` and no tensor to tell by, the highest available wins.
    """

    name: str
    device_type: str
    available: Reference[Callable[[], Decision]] = available
    traits: Reference[Callable[[int | None], Mapping[str, str]]] | None = None
    accepts: Reference[Callable[[Mapping[str, str], Mapping[str, str]], Decision]] = accepts_equal
    device: Reference[Callable[[int | None], DeviceOps]] | None = None
    compilers: tuple[str, ...] = ("eager",)
    rules: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    pass_manager: str | None = None
    static_graph: str | None = None
    config_defaults: Mapping[str, Any] = Factory(dict)
    environment: tuple[str, ...] = ()
    priority: int = 0


# ------------------------------------------------------------------------------------- split rules


@frozen
class Cut:
    """A rule's answer for one node.

    Attributes:
        kind: "op" makes the node a splitting op; "region" puts it in a region that is compiled on its own.
        group: nodes of one region share a group; None for ops.
        compilers: the compilers of the resulting piece, in order; None leaves it to the routes, and a
            splitting piece without compilers runs as it is.
        reason: shown by `explain()`.
    """

    kind: CutKind = field(default="op", validator=one_of(CutKind))
    group: str | None = None
    compilers: tuple[str, ...] | None = None
    reason: str = ""


class GraphView(Protocol):
    """The captured graph, as a rule sees it."""

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph itself; a rule must not change it."""

    @property
    def ops(self) -> Sequence[OpView]:
        """The operations in order."""

    def module_of(self, node: fx.Node) -> tuple[tuple[str, str], ...]:
        """Return the modules around a node, outermost first: (path, class name)."""


@runtime_checkable
class SplitRule(Protocol):
    """Says at which nodes to cut. A plain `(node) -> bool` function is accepted and wrapped."""

    def assign(self, graph: GraphView) -> Mapping[fx.Node, Cut]:
        """Return a cut for every node that the rule matches."""

    def factors(self) -> Mapping[str, str]:
        """Return the named parts of the rule's identity, for the cache key."""


@frozen
class SplitRuleSpec:
    """A named split rule, as `intarsia_split_rules` returns it."""

    name: str
    rule: Reference[SplitRule | Callable[[fx.Node], bool]]
    doc: str = ""


# ------------------------------------------------------------------------------------------ passes


@runtime_checkable
class Pass(Protocol):
    """Torch's `CustomGraphPass` shape, so that one object serves Inductor's slots and ours."""

    def __call__(self, graph: fx.Graph) -> int | None:
        """Rewrite the graph in place; may return how often it matched."""

    def uuid(self) -> Any:
        """Return an identity that changes whenever the pass would do something else."""


@frozen
class PassSpec:
    """A pass, as `intarsia_passes` returns it.

    Attributes:
        name: unique among all passes.
        version: enters the cache key.
        stage: where it runs.
        factory: `(options) -> Pass`.
        options: option name -> Option.
        before, after: names of passes at the same stage; absent names are ignored.
        boxes: `(box) -> bool`; None: every box.
        min_matches: fewer matches over the whole graph is a warning, and an error with `strict`.
    """

    name: str
    version: str
    stage: Stage = field(validator=one_of(Stage))
    factory: Reference[Callable[[Mapping[str, Any]], Pass]]
    options: Mapping[str, Option] = Factory(dict)
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    boxes: Reference[Callable[[Box], bool]] | None = None
    min_matches: int = 0


@frozen
class PassContext:
    """What a pass manager knows when it runs a stage."""

    box: Box
    device_type: str
    device: int | None = None
    piece: str = ""
    strict: bool = False
    options: Mapping[str, Mapping[str, Any]] = Factory(dict)


@frozen
class PassRun:
    """How one pass went over one graph.

    Attributes:
        matches: how often it matched; None: it does not count, or failed.
        error: why what it did was undone, or "".
    """

    name: str
    matches: int | None
    seconds: float
    stage: str = ""
    error: str = ""


@frozen
class PassReport:
    """How the passes of one stage went."""

    stage: str
    runs: tuple[PassRun, ...] = ()


@frozen
class BoundPass:
    """A pass that is ready to run: `run(graph)` rewrites it, with the core's checks around it.

    Where a check fails it raises in strict mode; else the graph is as it was before, and what it returns
    says so.
    """

    spec: PassSpec
    run: Callable[[fx.Graph], PassRun]


@frozen
class PassSetup:
    """What it takes to run passes, besides themselves: it travels with a `CompileRequest`.

    Attributes:
        options: pass name -> its options, defaults filled in.
        owners: pass name -> the plugin that brought it, for messages.
        manager: builds the pass manager; None: the built-in one.
        strict: whether a pass that fails, or leaves another function, raises.
        dump: a folder for every pass' graph before and after, or None.
        deadline: seconds that one pass may take; None in the process that asks, where none is set.
    """

    options: Mapping[str, Mapping[str, Any]] = Factory(dict)
    owners: Mapping[str, str] = Factory(dict)
    manager: Reference[Callable[[], PassManager]] | None = None
    manager_name: str = "built-in"
    strict: bool = False
    dump: str | None = None
    deadline: float | None = None


class PassManager(Protocol):
    """Orders and runs passes. The checks around each pass are inside `BoundPass.run`, so a manager
    that replaces the built-in one cannot lose them."""

    def order(
        self, specs: Sequence[PassSpec], stage: Stage, box: Box, config: Any
    ) -> Sequence[PassSpec]:
        """Return the specs that apply, in the order in which they run."""

    def run(
        self, passes: Sequence[BoundPass], stage: Stage, graph: fx.Graph, context: PassContext
    ) -> PassReport:
        """Run the passes of a stage, in the order that `order` gave, over a graph in place."""

    def factors(self) -> Mapping[str, str]:
        """Return named parts of the manager's identity, for the cache key."""


@frozen
class PassManagerSpec:
    """A pass manager, as `intarsia_pass_managers` returns it; `factory()` builds it."""

    name: str
    factory: Reference[Callable[[], PassManager]]


# ----------------------------------------------------------------------------------- static graphs


class Recording(Protocol):
    """A recorded static graph."""

    def replay(self) -> None:
        """Run the recorded work again, on the recorded addresses."""

    def release(self) -> None:
        """Give back what the recording holds."""


class StaticGraphBackend(Protocol):
    """Records and replays work on a device. Resources are named: bytes, streams, slots.

    A backend that records calls, not what is issued to a stream, also has `run(function, inputs, weights) ->
    outputs`, called between `begin` and `end` in the place of `function(*inputs)`; `weights` are tensors that
    the function has besides its inputs. Like a capture it runs nothing that anybody could see.
    """

    def new_pool(self, device: int | None) -> Any:
        """Return a memory pool that recordings may share."""

    def release_pool(self, pool: Any) -> None:
        """Give a pool back. Its recordings were released before."""

    def begin(self, pool: Any, stream: Stream) -> None:
        """Start recording the work of this thread on a stream that `DeviceOps.stream()` made.

        The core has entered the stream, and nothing else runs on it. One recording per thread at a time.
        """

    def end(self) -> Recording:
        """Finish this thread's recording."""

    def abort(self, stream: Stream) -> None:
        """Drop this thread's unfinished recording on a stream, wherever it stopped, also inside `end`.

        Afterwards the stream is usable, and the pool holds what it did before `begin`.
        """

    def budget(self, device: int | None) -> Mapping[str, int]:
        """Return what the device has left of each resource."""

    def estimate(self, signature: PieceSignature, box: Box) -> Mapping[str, int] | None:
        """Return what a recording will cost; None: unknown before it is made."""

    def measure(self, recording: Recording) -> Mapping[str, int]:
        """Return what a recording costs."""


@frozen
class StaticGraphSpec:
    """A static-graph backend, as `intarsia_static_graphs` returns it.

    `factory(options, device)` builds it, once per (process, options, device).
    """

    name: str
    factory: Reference[Callable[[Mapping[str, Any], int | None], StaticGraphBackend]]
    devices: tuple[str, ...] = ()
    options: Mapping[str, Option] = Factory(dict)
    available: Reference[Callable[[], Decision]] = available


@frozen
class OpSafety:
    """Whether an operation may be part of a recording.

    `device_type` "" means every device. An operation that nobody declares is unknown, and fails the
    recording unless the user allows it.
    """

    op: str
    safety: Safety = field(validator=one_of(Safety))
    device_type: str = ""
    reason: str = ""


# ------------------------------------------------------------------------- stores, checks and events


@frozen
class StoreStat:
    """What a store knows of an entry: its bytes, and when it was written, in seconds since 1970."""

    size: int
    modified: float


class Store(Protocol):
    """Holds bytes by key. An entry never changes once it is there."""

    def stat(self, key: str) -> StoreStat | None:
        """Return an entry's size and age without reading it, or None; for limits and listings."""

    def get(self, key: str) -> bytes | None:
        """Return the bytes, or None."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store the bytes unless the key exists; return whether they were stored."""

    def list(self) -> Iterable[str]:
        """Return every key."""

    def delete(self, key: str) -> None:
        """Remove an entry; absent is fine."""


@frozen
class StoreSpec:
    """A store, as `intarsia_stores` returns it; `factory(url, options)` builds it."""

    scheme: str
    factory: Reference[Callable[[str, Mapping[str, Any]], Store]]


@frozen
class Check:
    """A check of `intarsia doctor`; `run()` answers, and an exception counts as a failure."""

    name: str
    run: Reference[Callable[[], Decision]]


@frozen
class ConfigChange:
    """A setting that a plugin changes, with the reason that `explain()` shows."""

    key: str
    value: Any
    reason: str


@frozen
class Event:
    """Something that happened, for progress bars, counters and supervisors.

    Attributes:
        kind: "phase-start", "progress", "phase-end", "compile", "fallback", "uncovered", "rebind",
            "warning", "done".
        model: the name of the compiled model.
        phase: "capture", "split", "compile", "bind", "report", "record", "run".
        done, total: how far the phase is; total 0 means unknown.
        seconds: time since the compile began.
        message: one line for a reader.
        data: everything else, JSON-able.
    """

    kind: str
    model: str
    phase: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    message: str = ""
    data: Mapping[str, Any] = Factory(dict)


@frozen
class PieceView:
    """A piece, as `intarsia_choose_compiler` sees it."""

    index: int
    name: str
    kind: Literal["compiled", "splitting"]
    ops: tuple[str, ...]
    device_types: tuple[str, ...]
    modules: tuple[str, ...] = ()
    node_count: int = 0
