"""What tracing gives: the graph, and beside it everything that only jax understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.tree_util import PyTreeDef

from autopar.ir import Step


@dataclass(frozen=True, slots=True)
class Equation:
    """The jax side of one op.

    Attributes:
      primitive: the jax primitive.
      params: what to bind it with. Of a region op only what the graph does not say is kept: ``length``,
        ``reverse`` and ``unroll`` of a ``scan``.
    """

    primitive: Primitive
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Signature:
    """How the step is called: its parameter names, and the arguments that were fixed at trace time.

    Attributes:
      names: positional parameter names, in order.
      variadic: the name of ``*args``, empty if there is none.
      static_argnums: positions of static arguments.
      static_argnames: keywords of static arguments.
      statics: the static values: position or keyword -> value.
    """

    names: tuple[str, ...] = ()
    variadic: str = ""
    static_argnums: tuple[int, ...] = ()
    static_argnames: tuple[str, ...] = ()
    statics: Mapping[int | str, Any] = field(default_factory=dict)

    def positional(self, index: int) -> str:
        """The name of positional argument ``index``."""
        if index < len(self.names):
            return self.names[index]
        return f"{self.variadic or 'args'}[{index - len(self.names)}]"


@dataclass(frozen=True)
class Traced:
    """A traced step.

    Attributes:
      step: the graph and the roles of its arguments; checked, free of jax.
      equations: op id -> jax equation, for the ops of regions as well.
      constants: value id -> captured array. Those used inside regions are operands of the region op.
      literals: value id -> numpy scalar of the value's dtype.
      avals: value id -> jax aval (it also knows ``weak_type``).
      in_tree: structure of ``(args, kwargs)`` without the static arguments; its leaves are the graph's inputs.
      out_tree: structure of the result; its leaves are the graph's outputs.
      in_paths: a readable path per input: ``state.params['w']``.
      out_paths: a readable path per output: ``result[0]['w']``.
      signature: how the step is called.
      notes: what the user should know, with source lines (such as a sharding constraint that is ignored).
    """

    step: Step
    equations: Mapping[int, Equation] = field(repr=False)
    constants: Mapping[int, Any] = field(repr=False)
    literals: Mapping[int, Any] = field(repr=False)
    avals: Mapping[int, ShapedArray] = field(repr=False)
    in_tree: PyTreeDef
    out_tree: PyTreeDef
    in_paths: tuple[str, ...]
    out_paths: tuple[str, ...]
    signature: Signature = Signature()
    notes: tuple[str, ...] = ()
