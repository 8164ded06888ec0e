"""The decoder with an opaque attention op: how many pieces, how many compilations, and eager's numbers."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch

import intarsia
from tests.checks import compare_call, no_fallbacks, piece_records, same_as_eager, twin
from tests.models import (
    ATTENTION,
    DECODER_DYNAMIC,
    Inputs,
    Sizes,
    assert_same,
    clone,
    decoder,
    decoder_inputs,
    decoder_reference,
)
from tests.piece_worker import compile_and_run, defined, packed, random_inputs, run, unpacked

LAYERS = 12
SIZES: tuple[Sizes, ...] = tuple({"tokens": n} for n in (7, 1, 2, 30))
ONE_SIZE_SLOW = pytest.param("inductor", marks=pytest.mark.slow)


def inputs(s: Sizes, seed: int) -> Inputs:
    """Return the decoder's arguments."""
    return (), decoder_inputs(s["tokens"], seed)


def compiled_decoder(model: Any, sizes: tuple[Sizes, ...] = SIZES, /, **config: Any) -> Any:
    """Compile a decoder cut at its attention, compare it with eager and return it."""
    config = {"split_at": [ATTENTION], "strict": True, **config}
    return same_as_eager(model, inputs, sizes, DECODER_DYNAMIC, scale=5.0, **config)


def counts(report: Any) -> tuple[int, int, int, int]:
    """Return pieces, compiled pieces, distinct pieces and compiler calls."""
    return report.pieces, report.compiled_pieces, report.distinct, report.compiler_calls


def test_the_test_decoder_itself_is_right() -> None:
    for constants in ("none", "both"):
        model = decoder(3, constants=constants)
        for n in (1, 9):
            call = decoder_inputs(n, seed=n)
            with torch.no_grad():
                result = model(**call)
                assert_same(result, decoder_reference(model, **call))
            assert result.std() > 0.5


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_twelve_layers_make_25_pieces_13_compiled_3_distinct(compiler: str) -> None:
    compiled = compiled_decoder(decoder(LAYERS), compilers=[compiler])
    assert counts(compiled.report) == (25, 13, 3, 3)
    assert no_fallbacks(compiled.report)
    records = piece_records(compiled.report)
    assert len(records) == 25
    assert [ATTENTION in " ".join(record["ops"]) for record in records] == [False, True] * 12 + [
        False
    ]
    keys = [record["key"] for record in records]
    assert len(set(keys[2:-1:2])) == 1, "the eleven middle pieces are one"
    assert len({keys[0], keys[2], keys[-1]}) == 3
    assert {record["compiler"] for record in records[::2]} == {compiler}


@pytest.mark.parametrize("regional", [True, False])
@pytest.mark.parametrize("marked", [True, False])
def test_regional_capture_changes_no_count(regional: bool, marked: bool) -> None:
    model = decoder(LAYERS, hidden=32, marked=marked)
    compiled = compiled_decoder(model, compilers=["eager"], regional=regional)
    assert counts(compiled.report) == (25, 13, 3, 3)


@pytest.mark.parametrize("regional", [True, False])
def test_values_that_layers_share_may_be_views_of_one_tensor(regional: bool) -> None:
    model = decoder(4, hidden=32, chunked=True)
    compiled = compiled_decoder(model, compilers=["eager"], regional=regional)
    assert counts(compiled.report) == (9, 5, 3, 3)


@pytest.mark.parametrize("layers", [1, 2, 32])
def test_the_count_of_distinct_pieces_does_not_grow(layers: int) -> None:
    model = decoder(layers, hidden=16, heads=2)
    report = compiled_decoder(model, SIZES[:2], compilers=["eager"]).report
    distinct = min(layers + 1, 3)
    assert counts(report) == (2 * layers + 1, layers + 1, distinct, distinct)


@pytest.mark.parametrize("compiler", ["eager", ONE_SIZE_SLOW])
def test_without_a_rule_there_is_one_piece(compiler: str) -> None:
    compiled = compiled_decoder(decoder(3), compilers=[compiler], split_at=[])
    assert counts(compiled.report) == (1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    compiled = compiled_decoder(decoder(3, dtype=dtype), compilers=["eager"])
    assert counts(compiled.report) == (7, 4, 3, 3)


def test_explain_names_the_pieces_the_op_and_the_compilers() -> None:
    compiled = compiled_decoder(decoder(2), SIZES[:1], compilers=["eager"])
    text = compiled.explain()
    assert ATTENTION in text
    assert "eager" in text
    code = compiled.explain(code=True)
    assert len(code) > len(text)
    assert "def " in code


def test_the_wrapper_keeps_the_state_dict_and_the_module() -> None:
    model = decoder(2)
    compiled = compiled_decoder(model, SIZES[:1], compilers=["eager"])
    assert isinstance(compiled, torch.nn.Module)
    assert compiled.module is model
    assert_same(dict(compiled.state_dict()), dict(model.state_dict()))


def test_two_compiled_models_do_not_disturb_each_other() -> None:
    one, other = decoder(3, seed=1), decoder(3, seed=2)
    references = twin(one), twin(other)
    first = compiled_decoder(one, SIZES[:1], compilers=["eager"], name="one")
    second = compiled_decoder(other, SIZES[:1], compilers=["eager"], split_at=[], name="other")
    for n in (3, 8):
        compare_call(first, one, references[0], inputs({"tokens": n}, n), scale=5)
        compare_call(second, other, references[1], inputs({"tokens": n}, n), scale=5)


# ------------------------------------------------------------------------------------------ JIT door


def through_jit(model: Any, sizes: tuple[Sizes, ...], **options: Any) -> list[Any]:
    """Compile through torch.compile, compare with eager and return the new reports."""
    reference, before = twin(model), len(intarsia.reports())
    options = {"split_at": [ATTENTION], "strict": True, **options}
    compiled = torch.compile(model, backend="intarsia", options=options)
    with torch.no_grad():
        for seed, size in enumerate(sizes):
            args, kwargs = inputs(size, seed)
            for tensor in kwargs.values():
                torch._dynamo.mark_dynamic(tensor, 0)
            compare_call(compiled, model, reference, (args, kwargs), scale=5)
    return list(intarsia.reports())[before:]


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("compiler", ["eager", ONE_SIZE_SLOW])
def test_the_jit_door_gives_the_same_counts(compiler: str, marked: bool) -> None:
    sizes = tuple({"tokens": n} for n in (7, 2, 30))
    reports = through_jit(decoder(LAYERS, marked=marked), sizes, compilers=[compiler])
    assert len(reports) == 1, "one graph, and no recompilation for another size"
    assert counts(reports[0]) == (25, 13, 3, 3)
    assert no_fallbacks(reports[0])


def test_the_jit_door_names_symbols_and_takes_boxes() -> None:
    reports = through_jit(
        decoder(3),
        tuple({"tokens": n} for n in (7, 8, 9, 30)),
        compilers=["eager"],
        dynamic=DECODER_DYNAMIC,
        boxes={"tokens": [8, 64]},
        uncovered="error",
    )
    assert counts(reports[0]) == (7, 4, 3, 6)


def test_the_jit_door_without_a_rule_gives_one_piece() -> None:
    reports = through_jit(decoder(2), SIZES[:1], compilers=["eager"], split_at=[])
    assert [counts(report) for report in reports] == [(1, 1, 1, 1)]


# --------------------------------------------------------------------------------------------- boxes

BOXES: dict[str, Any] = {
    "boxes": {"tokens": [8, 256, 8192]},
    "sizes": {"tokens": [1, 4]},
}
CHOSEN = {
    1: (1, 1),
    2: (1, 8),
    3: (1, 8),
    4: (4, 4),
    5: (1, 8),
    8: (1, 8),
    9: (9, 256),
    256: (9, 256),
    257: (257, 8192),
}


@pytest.mark.parametrize(("uncovered", "calls"), [("error", 15), ("eager", 15), ("general", 18)])
def test_boxes_and_sizes_make_one_call_per_distinct_piece_and_box(
    uncovered: str, calls: int, toys: ModuleType
) -> None:
    compiled = compiled_decoder(
        decoder(3, hidden=32),
        tuple({"tokens": n} for n in (2, *CHOSEN)),
        compilers=["recorder"],
        uncovered=uncovered,
        **BOXES,
    )
    assert counts(compiled.report) == (7, 4, 3, calls)
    assert len(toys.REQUESTS) == calls
    boxes = [request.box["tokens"] for request in toys.REQUESTS]
    for box in set(CHOSEN.values()):
        assert boxes.count(box) == 3, f"box {box} in {sorted(boxes)}"
    point = [request for request in toys.REQUESTS if request.box["tokens"] in ((1, 1), (4, 4))]
    for request in point:
        sizes = [v for v in request.fake_inputs if isinstance(v, torch.SymInt)]
        assert not sizes, f"{request.name}: a box of one point fixes its sizes"
    assert no_fallbacks(compiled.report)


@pytest.mark.parametrize("tokens", sorted(CHOSEN))
def test_the_right_artifact_runs(tokens: int, toys: ModuleType) -> None:
    model = decoder(2, hidden=32)
    compiled = compiled_decoder(
        model, SIZES[:1], compilers=["recorder"], uncovered="error", **BOXES
    )
    toys.RUNS.clear()
    compare_call(compiled, model, twin(model), inputs({"tokens": tokens}, tokens), scale=5)
    assert [box["tokens"] for _, box in toys.RUNS] == [CHOSEN[tokens]] * 3


@pytest.mark.slow
def test_boxes_and_sizes_through_inductor() -> None:
    compiled = compiled_decoder(
        decoder(2, hidden=32),
        tuple({"tokens": n} for n in (2, *CHOSEN)),
        compilers=["inductor"],
        uncovered="error",
        **BOXES,
    )
    assert compiled.report.compiler_calls == 15
    assert no_fallbacks(compiled.report)


def test_outside_every_box_error_raises_and_names_the_size() -> None:
    compiled = compiled_decoder(
        decoder(2, hidden=32),
        SIZES,
        compilers=["eager"],
        boxes={"tokens": [8, 32]},
        uncovered="error",
    )
    for n in (0, 33, 400):
        with pytest.raises(intarsia.IntarsiaError, match=rf"tokens.*\b{n}\b|\b{n}\b.*tokens"):
            compiled(**decoder_inputs(n))


@pytest.mark.parametrize("uncovered", ["eager", "general"])
def test_outside_every_box_the_policy_gives_eagers_numbers(uncovered: str) -> None:
    model = decoder(2, hidden=32)
    compiled = compiled_decoder(
        model, SIZES, compilers=["eager"], boxes={"tokens": [8, 32]}, uncovered=uncovered
    )
    reference = twin(model)
    for n in (33, 70):
        compare_call(compiled, model, reference, inputs({"tokens": n}, n), scale=5)
    if uncovered == "eager":
        assert compiled.report.counters["uncovered"] == 2, "calls outside every box are counted"
    with torch.no_grad():
        assert compiled(**decoder_inputs(0)).shape == (0, 32)


# ------------------------------------------------------------------------------ requests as bytes


@pytest.mark.parametrize("compiler", ["eager", ONE_SIZE_SLOW])
def test_every_request_compiles_to_equal_results_in_a_spawned_process(
    compiler: str, toys: ModuleType
) -> None:
    compiled_decoder(
        decoder(3, hidden=32, constants="both"),
        SIZES[:1],
        compilers=["recorder"],
        boxes={"tokens": [8, 64]},
        sizes={"tokens": [1]},
        uncovered="general",
        routes=[{"piece": {"kind": "splitting"}, "compilers": ["recorder"]}],
    )
    requests = list(toys.REQUESTS)
    assert len({request.box["tokens"] for request in requests}) == 4
    assert {request.kind for request in requests} == {"compiled", "splitting"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        jobs = []
        for seed, request in enumerate(requests):
            values = random_inputs(request, seed)
            expected = run(request.graph.forward, clone(values))
            jobs.append((request, expected, request.to_bytes(), packed(values)))
        futures = [pool.submit(compile_and_run, data, compiler, v) for *_, data, v in jobs]
        for (request, expected, _, _), future in zip(jobs, futures, strict=True):
            actual = defined(request, unpacked(future.result(300)))
            assert_same(actual, defined(request, expected), scale=5, where=request.name)


def test_a_request_survives_bytes_with_every_field(toys: ModuleType) -> None:
    from intarsia.interfaces import CompileRequest

    compiled_decoder(decoder(2, hidden=32), SIZES[:1], compilers=["recorder"])
    for request in toys.REQUESTS:
        again = CompileRequest.from_bytes(request.to_bytes())
        assert again.signature == request.signature
        assert (again.name, again.kind, again.key) == (request.name, request.kind, request.key)
        assert (again.device_type, again.device) == (request.device_type, request.device)
        assert len(again.fake_inputs) == len(request.fake_inputs)
        for one, other in zip(again.fake_inputs, request.fake_inputs, strict=True):
            assert type(one) is type(other)
            if isinstance(one, torch.Tensor):
                assert one.dtype == other.dtype
                assert one.dim() == other.dim()
                ints = [(a, b) for a, b in zip(one.shape, other.shape, strict=True)]
                assert [isinstance(a, int) for a, _ in ints] == [
                    isinstance(b, int) for _, b in ints
                ]
        values = random_inputs(request, 0)
        actual, expected = (run(one.graph.forward, clone(values)) for one in (again, request))
        assert_same(defined(request, actual), defined(request, expected))
