"""What runs: graphs of ops, and the factor rule of each op. Plain data, no jax."""

from autopar.ir.flops import op_flops, product_flops
from autopar.ir.graph import Graph, Loop, Op, Step, Value, Where, item_bytes
from autopar.ir.ports import PortGroup, region_ports
from autopar.ir.remat import ATTENTION, FULL, NONE, REMATS, remat_text
from autopar.ir.rule import Dims, Factor, Kind, Reduce, Rule
from autopar.ir.verify import verify

__all__ = [
    "ATTENTION",
    "FULL",
    "NONE",
    "REMATS",
    "Dims",
    "Factor",
    "Graph",
    "Kind",
    "Loop",
    "Op",
    "PortGroup",
    "Reduce",
    "Rule",
    "Step",
    "Value",
    "Where",
    "item_bytes",
    "op_flops",
    "product_flops",
    "region_ports",
    "remat_text",
    "verify",
]
