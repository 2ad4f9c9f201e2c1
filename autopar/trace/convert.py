"""jaxpr -> ops: calls are inlined, control flow keeps its bodies as regions, random bits are written out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive

from autopar.ir import Graph, Loop, Op, Rule, Value, Where
from autopar.sharding.rules import Site, opaque_rule, rule_for
from autopar.trace import primitives, rng
from autopar.trace.digest import params_digest, region_digest
from autopar.trace.source import Origin, Sources
from autopar.trace.traced import Equation

Env = dict[Any, int]  # jaxpr variable -> value id

_LOOP_PARAMS = ("length", "reverse", "unroll")
_NO_RULE = Rule((), (), ())


class Scope:
    """A graph under construction: the top level, or one region.

    A captured array read inside a region becomes an input of the region and an operand of its op, and so on
    outwards: ``captured`` maps the value outside to the value inside.
    """

    def __init__(self, outer: Scope | None = None) -> None:
        self.outer = outer
        self.ops: list[Op] = []
        self.captured: dict[int, int] = {}


class Builder:
    """Collects values, ops and what only jax understands. Ids count up in order of appearance."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.values: dict[int, Value] = {}
        self.avals: dict[int, ShapedArray] = {}
        self.literals: dict[int, Any] = {}
        self.constants: dict[int, Any] = {}
        self.equations: dict[int, Equation] = {}
        self.notes: dict[str, None] = {}  # ordered, without repetition
        self._known_zeros: set[int] = set()
        self._literal_ids: dict[Any, int] = {}
        self._constant_ids: dict[int, int] = {}
        self._raw_keys: dict[int, int] = {}
        self._rules: dict[Any, tuple[Rule, bool]] = {}
        self._digests: dict[int, tuple[Any, str]] = {}

    # values

    def value(self, aval: Any, name: str = "", literal: bool = False) -> int:
        """A new value."""
        index = len(self.values)
        dtype = "float0" if aval.dtype == jax.dtypes.float0 else str(aval.dtype)
        self.values[index] = Value(index, tuple(aval.shape), dtype, name, literal)
        self.avals[index] = aval
        return index

    def captured(self, array: Any, aval: Any, scope: Scope) -> int:
        """The value of an array that the function closes over; a numeric scalar becomes a literal."""
        if aval.shape == () and not jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
            return self._literal(array, aval)
        if scope.outer is None:
            if id(array) not in self._constant_ids:
                index = self._constant_ids[id(array)] = self.value(aval)
                self.constants[index] = array
            return self._constant_ids[id(array)]
        outside = self.captured(array, aval, scope.outer)
        if outside not in scope.captured:
            scope.captured[outside] = self.value(aval)
        return scope.captured[outside]

    def _literal(self, val: Any, aval: Any) -> int:
        scalar = np.asarray(val).astype(aval.dtype)[()]
        key = (scalar.dtype, scalar.tobytes(), aval.weak_type)
        if key not in self._literal_ids:
            self._literal_ids[key] = self.value(aval, literal=True)
            self.literals[self._literal_ids[key]] = scalar
        return self._literal_ids[key]

    def _read(self, atom: Any, env: Env, scope: Scope) -> int:
        return self.captured(atom.val, atom.aval, scope) if isinstance(atom, Literal) else env[atom]

    # equations

    def inline(self, closed: ClosedJaxpr | Jaxpr, args: Sequence[int], scope: Scope, origin: Origin) -> list[int]:
        """Add the ops of a jaxpr to ``scope`` and return the values of its results."""
        jaxpr, consts = (closed.jaxpr, closed.consts) if isinstance(closed, ClosedJaxpr) else (closed, ())
        env: Env = dict(zip(jaxpr.invars, args, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.captured(const, var.aval, scope)
        for eqn in jaxpr.eqns:
            operands = [self._read(a, env, scope) for a in eqn.invars]
            results = self._equation(eqn, operands, scope, self.sources.where(eqn.source_info, origin))
            env.update(zip(eqn.outvars, results, strict=True))
        return [self._read(a, env, scope) for a in jaxpr.outvars]

    def _equation(self, eqn: JaxprEqn, args: list[int], scope: Scope, where: Where) -> Sequence[int]:
        name, params = eqn.primitive.name, eqn.params
        body = params.get(primitives.INLINED.get(name, ""))
        if body is not None:
            if name in primitives.REMAT:
                args = self._barriers(params, args, scope, where)
            return self.inline(body, args, scope, self.sources.enter(where, body))
        if name in primitives.IDENTITIES:
            if placement := primitives.placement(eqn):
                self.notes[f"{placement} at {where.line} is ignored: the plan chooses layouts"] = None
            return args
        if len(args) == 1 and len(eqn.outvars) == 1 and self._changes_nothing(name, params, args[0], eqn):
            return args
        if (same := self._neutral(name, args)) is not None:
            return [same]
        if name in primitives.KEEP_ZEROS and all(map(self._is_zero, args)):
            return self._zeros(eqn, args, scope, where)
        if name == "random_bits" and rng.expandable(self.avals[args[0]].dtype):
            keys = self.avals[args[0]]
            bits = rng.bits_jaxpr(keys.shape, keys.dtype, params["bit_width"], tuple(params["shape"]))
            return self.inline(bits, args, scope, Origin(where, fixed=True))
        if name in primitives.VMAPPED:
            reduce = functools.partial(primitives.VMAPPED[name], axes=params["axes"])
            avals = [jax.ShapeDtypeStruct(self.avals[v].shape, self.avals[v].dtype) for v in args]
            reduced = jax.make_jaxpr(lambda *xs: [reduce(x) for x in xs])(*avals)
            return self.inline(reduced, args, scope, Origin(where, fixed=True))
        if name == "random_unwrap" and args[0] in self._raw_keys:
            return [self._raw_keys[args[0]]]
        if name in primitives.LOOPS:
            return getattr(self, f"_{name}")(eqn, args, scope, where)
        results = self._emit(eqn.primitive, params, args, [v.aval for v in eqn.outvars], scope, where)
        if name == "random_wrap":
            self._raw_keys[results[0]] = args[0]
        return results

    def _changes_nothing(self, name: str, params: Mapping[str, Any], arg: int, eqn: JaxprEqn) -> bool:
        before: ShapedArray = self.avals[arg]
        after: Any = eqn.outvars[0].aval
        if before.shape != after.shape or before.dtype != after.dtype:
            return False
        if name == "transpose":
            return tuple(params["permutation"]) == tuple(range(len(before.shape)))
        if name == "broadcast_in_dim":
            return tuple(params["broadcast_dimensions"]) == tuple(range(len(before.shape)))
        if name == "rev":  # of a 1x1 convolution kernel
            return all(before.shape[d] == 1 for d in params["dimensions"])
        return name in ("convert_element_type", "reshape", "squeeze", "slice") or (
            name == "reduce_sum" and not params["axes"]
        )

    def _neutral(self, name: str, args: Sequence[int]) -> int | None:
        """The operand to which an op adds nothing, or which it multiplies by one, as XLA sees it."""
        commutes, neutral = primitives.NEUTRAL.get(name, (False, None))
        for kept, other in ((0, 1), (1, 0))[: 1 + commutes] if neutral is not None else ():
            alike = self.values[args[other]].shape in ((), self.values[args[kept]].shape)
            scalar = self.literals.get(args[other], 0 if self._is_zero(args[other]) else None)
            if alike and scalar == neutral:
                return args[kept]
        return None

    def _is_zero(self, v: int) -> bool:
        """Whether a value is known to be zero everywhere, as gradients of what was stopped are."""
        return v in self._known_zeros or (v in self.literals and self.literals[v] == 0)

    def _zeros(self, eqn: JaxprEqn, args: Sequence[int], scope: Scope, where: Where) -> Sequence[int]:
        """The result of an op that makes zeros of zeros."""
        out: Any = eqn.outvars[0].aval
        if out.shape == ():
            return [self._literal(0, out)]
        results = self._emit(eqn.primitive, eqn.params, args, [out], scope, where)
        self._known_zeros.update(results)
        return results

    def _emit(
        self,
        primitive: Primitive,
        params: Mapping[str, Any],
        args: Sequence[int],
        avals: Sequence[Any],
        scope: Scope,
        where: Where,
    ) -> tuple[int, ...]:
        results = tuple(self.value(aval) for aval in avals)
        digest = params_digest(params)
        rule, opaque = self._rule(primitive.name, args, results, params, digest)
        index = len(self.equations)
        self.equations[index] = Equation(primitive, params)
        scope.ops.append(Op(index, primitive.name, tuple(args), results, rule, digest, where, opaque))
        return results

    def _rule(
        self, name: str, args: Sequence[int], results: Sequence[int], params: Mapping[str, Any], digest: str
    ) -> tuple[Rule, bool]:
        operands, made = tuple(self.values[v] for v in args), tuple(self.values[v] for v in results)
        scalars = {i: self.literals[v] for i, v in enumerate(args) if v in self.literals}
        key = (
            name,
            digest,
            tuple((v.shape, v.dtype) for v in operands),
            tuple((v.shape, v.dtype) for v in made),
            tuple((i, x.tobytes()) for i, x in scalars.items()),
        )
        if key not in self._rules:
            site = Site(name, operands, made, params, scalars)
            rule = rule_for(site)
            # With scalars alone there is nothing to split: no rule is missing.
            divisible = any(v.size > 1 for v in (*operands, *made))
            self._rules[key] = (opaque_rule(site), divisible) if rule is None else (rule, False)
        return self._rules[key]

    def _barriers(self, params: Mapping[str, Any], args: list[int], scope: Scope, where: Where) -> list[int]:
        """Keep XLA from merging a recomputation with the original, where jax would.

        One barrier per operand, so that each operand keeps a layout choice of its own.
        """
        keep_apart = params["prevent_cse"]
        if isinstance(keep_apart, bool):
            keep_apart = (keep_apart,) * len(args)
        if not params["differentiated"]:
            return args
        return [
            self._emit(jax.lax.optimization_barrier_p, {}, [v], [self.avals[v]], scope, where)[0]
            if apart and v not in self.literals
            else v
            for v, apart in zip(args, keep_apart, strict=True)
        ]

    # control flow

    def _region(self, closed: ClosedJaxpr | Jaxpr, where: Where, outer: Scope) -> tuple[list[int], list[int], Scope]:
        """The inputs, outputs and scope of a body."""
        scope = Scope(outer)
        jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
        inputs = [self.value(v.aval) for v in jaxpr.invars]
        return inputs, self.inline(closed, inputs, scope, self.sources.enter(where, closed)), scope

    def _graph(self, inputs: Sequence[int], outputs: Sequence[int], scope: Scope) -> Graph:
        return Graph(tuple(inputs), tuple(outputs), tuple(scope.ops), self.values)

    def _loop(
        self, eqn: JaxprEqn, loop: Loop, operands: Sequence[int], regions: Sequence[Graph], scope: Scope, where: Where
    ) -> tuple[int, ...]:
        results = tuple(self.value(v.aval) for v in eqn.outvars)
        params = {name: eqn.params[name] for name in _LOOP_PARAMS if name in eqn.params}
        digest = params_digest({**params, "regions": tuple(map(region_digest, regions))})
        index = len(self.equations)
        self.equations[index] = Equation(eqn.primitive, params)
        name = eqn.primitive.name
        scope.ops.append(
            Op(index, name, tuple(operands), results, _NO_RULE, digest, where, regions=tuple(regions), loop=loop)
        )
        return results

    def _scan(self, eqn: JaxprEqn, args: list[int], scope: Scope, where: Where) -> tuple[int, ...]:
        inputs, outputs, body = self._region(eqn.params["jaxpr"], where, scope)
        region = self._graph([*body.captured.values(), *inputs], outputs, body)
        consts, carry = primitives.scan_counts(eqn)
        loop = Loop("scan", length=eqn.params["length"], consts=consts + len(body.captured), carry=carry)
        return self._loop(eqn, loop, [*body.captured, *args], [region], scope, where)

    def _while(self, eqn: JaxprEqn, args: list[int], scope: Scope, where: Where) -> tuple[int, ...]:
        n_test, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        test_in, test_out, test = self._region(eqn.params["cond_jaxpr"], where, scope)
        body_in, body_out, body = self._region(eqn.params["body_jaxpr"], where, scope)
        regions = [
            self._graph([*test.captured.values(), *test_in], test_out, test),
            self._graph([*body.captured.values(), *body_in], body_out, body),
        ]
        operands = [*test.captured, *args[:n_test], *body.captured, *args[n_test:]]
        loop = Loop(
            "while",
            cond_consts=n_test + len(test.captured),
            consts=n_body + len(body.captured),
            carry=len(args) - n_test - n_body,
        )
        return self._loop(eqn, loop, operands, regions, scope, where)

    def _cond(self, eqn: JaxprEqn, args: list[int], scope: Scope, where: Where) -> tuple[int, ...]:
        bodies = [self._region(branch, where, scope) for branch in eqn.params["branches"]]
        captured = dict.fromkeys(v for _, _, body in bodies for v in body.captured)
        regions = []
        for inputs, outputs, body in bodies:
            # Every branch takes every operand, whether it reads it or not.
            extra = [body.captured[v] if v in body.captured else self.value(self.avals[v]) for v in captured]
            regions.append(self._graph([*extra, *inputs], outputs, body))
        return self._loop(eqn, Loop("cond"), [args[0], *captured, *args[1:]], regions, scope, where)
