"""Fused operators of transformer models: what they compute, the Triton kernels, and the operators of torch.

`reference` says in plain PyTorch what each computes, `ops` makes them operators, `norm`, `activation` and
`rotary` hold the kernels. Those three import Triton, so they are imported by a call on a GPU alone.
"""
