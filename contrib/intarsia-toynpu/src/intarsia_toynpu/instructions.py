"""What the device's instructions can do: a part of ATen, and `toynpu::swiglu`."""

from __future__ import annotations

from intarsia.interfaces import Decision, OpView

_NAMES = """
abs add bitwise_and bitwise_not bitwise_or clamp clamp_max clamp_min clone cos div eq erf exp fill floor ge
gelu gt hardtanh le leaky_relu lift_fresh_copy log log1p logical_and logical_not logical_or lt masked_fill
maximum minimum mul ne neg pow reciprocal relu remainder rsqrt rsub scalar_tensor sigmoid sign silu sin
softplus sqrt square sub tanh where _to_copy

addmm baddbmm bmm matmul mm

_fused_rms_norm _log_softmax _softmax all amax amin any argmax argmin cumsum max mean min native_layer_norm
prod sort sum topk var

_reshape_alias _unsafe_view alias arange as_strided cat constant_pad_nd detach embedding empty empty_like
empty_strided expand flip full full_like gather index index_select new_empty new_full new_ones new_zeros ones
ones_like permute repeat reshape roll select slice split split_with_sizes squeeze stack sym_numel sym_size
sym_stride t transpose tril triu unbind unsqueeze view zeros zeros_like
"""
"""By unit: vector, matrix, reduction, and what moves or makes tensors."""

INSTRUCTIONS = frozenset(_NAMES.split())
"""ATen's operations that there is an instruction for; their overloads are forms of it."""

_OWN = ("toynpu::swiglu",)

_NONE = (
    "torch.nn.functional.scaled_dot_product_attention",
    "torch.einsum",
    "torch.nn.functional.conv",
)
"""Functions of torch that no instructions add up to."""


def is_instruction(name: str) -> bool:
    """Say whether there is an instruction for an operation, given as "aten::mm.default"."""
    namespace, _, rest = name.partition("::")
    if name.startswith(_OWN):
        return True
    return namespace == "aten" and rest.partition(".")[0] in INSTRUCTIONS


def supports(op: OpView) -> Decision:
    """Say whether the compiler takes an operation, as `split-by-support` asks.

    Torch's functions are made of ATen's operations, which are known when a piece is compiled.
    """
    if "::" in op.name and not is_instruction(op.name):
        return Decision(False, f"toynpu has no instruction for {op.name}")
    if op.name.startswith(_NONE):
        return Decision(False, f"toynpu has no instructions for {op.name}")
    if op.mutates:
        return Decision(False, f"{op.name} writes to its inputs, and a program writes to none")
    return Decision(True)
