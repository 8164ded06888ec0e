"""The metadata check: what enters and leaves a piece against what was recorded.

Runs on the first call of every (piece, box), and on every call with `check = "always"`. A compiled piece
that is handed another layout than it was built for reads the wrong memory without an error; one that
returns an alias of its input corrupts later results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen

from intarsia.dtypes import dtype_name
from intarsia.errors import MetadataError
from intarsia.interfaces import IntInfo, PieceSignature, TensorInfo, ValueInfo
from intarsia.sizes import Size, size_function


@frozen
class CheckedCallable:
    """A piece's callable that compares everything with the signature on each call.

    Attributes:
        function: the callable; `boxed` says whether it takes one list.
        signature: what was recorded.
        name: the piece, for messages.
        compiler: who made the callable, for messages.
    """

    function: Callable[..., Any]
    signature: PieceSignature
    name: str
    compiler: str
    boxed: bool = False
    sizes: dict[str, Size] = field(factory=dict, eq=False, repr=False)

    def __call__(self, *inputs: Any) -> Any:
        """Call the piece.

        Raises:
            MetadataError: an input or output is not what was recorded.
        """
        values: Sequence[Any] = inputs[0] if self.boxed else inputs
        kept = list(values)  # a boxed call may clear the list it is given
        symbols = self._symbols(kept)
        for index, (info, value) in enumerate(zip(self.signature.inputs, kept, strict=True)):
            self._compare(info, value, symbols, f"input {index}")
        outputs = self.function(*inputs)
        self._check_outputs(outputs, kept, symbols)
        return outputs

    def _check_outputs(self, outputs: Any, inputs: list[Any], symbols: Mapping[str, int]) -> None:
        expected = self.signature.outputs
        if not isinstance(outputs, tuple | list) or len(outputs) != len(expected):
            got = len(outputs) if isinstance(outputs, tuple | list) else type(outputs).__name__
            raise self._error("returned the wrong number of values", len(expected), got)
        for index, (info, value) in enumerate(zip(expected, outputs, strict=True)):
            self._compare(info, value, symbols, f"output {index}")
            self._check_alias(info, value, inputs, f"output {index}")

    def _symbols(self, inputs: Sequence[Any]) -> dict[str, int]:
        found: dict[str, int] = {}
        for info, value in zip(self.signature.inputs, inputs, strict=True):
            if isinstance(info, IntInfo):
                if isinstance(info.expression, str) and info.expression.isidentifier():
                    found.setdefault(info.expression, int(value))
            elif isinstance(value, torch.Tensor) and value.dim() == len(info.shape):
                for size, actual in zip(info.shape, value.shape, strict=True):
                    if isinstance(size, str) and size.isidentifier():
                        found.setdefault(size, int(actual))
        return found

    def _compare(self, info: ValueInfo, value: Any, symbols: Mapping[str, int], what: str) -> None:
        if isinstance(info, IntInfo):
            wanted = self._number(info.expression, symbols)
            if wanted is not None and int(value) != wanted:
                raise self._error(f"{what} is the wrong number", wanted, value)
            return
        if not isinstance(value, torch.Tensor):
            raise self._error(f"{what} is no tensor", "a tensor", type(value).__name__)
        if dtype_name(value.dtype) != info.dtype:
            raise self._error(f"{what} has the wrong dtype", info.dtype, dtype_name(value.dtype))
        if value.device.type != info.device_type:
            raise self._error(f"{what} is on the wrong device", info.device_type, value.device.type)
        shape = tuple(self._number(s, symbols) for s in info.shape)
        if len(shape) != value.dim() or not _agree(shape, tuple(value.shape)):
            raise self._error(f"{what} has the wrong shape", shape, tuple(value.shape))
        self._compare_strides(info, value, symbols, what)

    def _compare_strides(
        self, info: TensorInfo, value: torch.Tensor, symbols: Mapping[str, int], what: str
    ) -> None:
        if value.layout != torch.strided or value.numel() == 0:
            return
        wanted = [self._number(s, symbols) for s in info.stride]
        for size, expected, actual in zip(value.shape, wanted, value.stride(), strict=True):
            if size > 1 and expected is not None and expected != actual:
                raise self._error(f"{what} has the wrong stride", tuple(wanted), value.stride())

    def _check_alias(self, info: ValueInfo, value: Any, inputs: list[Any], what: str) -> None:
        if not isinstance(info, TensorInfo) or info.alias_class is not None:
            return
        if (
            not isinstance(value, torch.Tensor)
            or value.layout != torch.strided
            or not value.numel()
        ):
            return
        if 1 in value.shape:
            return  # at size 1 a copy may legally be a view: reshape and contiguous look for it
        own = _memory(value)
        for index, other in enumerate(inputs):
            if not isinstance(other, torch.Tensor) or other.layout != torch.strided:
                continue
            if own and other.numel() and _memory(other) == own:
                raise self._error(f"{what} shares memory with input {index}", "memory of its own",
                                  "an alias")  # fmt: skip

    def _number(self, size: int | str, symbols: Mapping[str, int]) -> int | None:
        if isinstance(size, int):
            return size
        if size in symbols:
            return symbols[size]
        if size not in self.sizes:
            self.sizes[size] = size_function(size, self.signature.box)
        try:
            return self.sizes[size]({**self._fixed(), **symbols})
        except KeyError:  # a size that only running the piece reveals
            return None

    def _fixed(self) -> dict[str, int]:
        return {n: low for n, (low, high) in self.signature.box.items() if low == high}

    def _error(self, what: str, expected: Any, got: Any) -> MetadataError:
        return MetadataError(
            f"{self.name} by {self.compiler}: {what}",
            why=f"expected {expected}, got {got}",
            next_step=f'Report it to the maker of "{self.compiler}"; other compilers can be named in '
            "compilers.",
            subject=self.name,
        )


def _memory(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a subclass around other tensors
        return 0


def _agree(wanted: tuple[int | None, ...], actual: tuple[int, ...]) -> bool:
    return all(w is None or w == a for w, a in zip(wanted, actual, strict=True))


class _Needed(dict[str, int]):
    """A mapping for `eval`: a missing symbol is a KeyError rather than a NameError."""
