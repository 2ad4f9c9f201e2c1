"""From a jax step function to a verified jax-free graph, with the jax equations kept aside by op id."""

from autopar.trace.arguments import flatten_args
from autopar.trace.source import MARK
from autopar.trace.traced import Equation, Signature, Traced
from autopar.trace.tracer import trace

__all__ = ["MARK", "Equation", "Signature", "Traced", "flatten_args", "trace"]
