"""Layouts and whole plans in the field's words. Every word follows from the facts of the plan alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autopar.ir import NONE, item_bytes
from autopar.plan import Argument, PlanFacts
from autopar.report.common import device_names
from autopar.report.paths import Keys, keys, shared_prefix
from autopar.sharding.layout import local_size
from autopar.sharding.words import layout_text  # noqa: F401 (one of the words of pages)

_SOME, _ALL = 0.1, 0.9  # shares of bytes below which a thing is not said, and above which it is said plainly
_EXPERT_WORDS = ("expert", "moe")
_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def array_text(shape: Sequence[int], dtype: str) -> str:
    """Shape and dtype in one word.

    >>> array_text((64, 256), "bfloat16"), array_text((), "int32")
    ('bf16[64,256]', 'i32[]')
    """
    stem = dtype.rstrip("0123456789")
    short = _SHORT[stem] + dtype[len(stem) :] if stem in _SHORT else dtype
    return f"{short}[{','.join(map(str, shape))}]"


def nbytes(argument: Argument) -> int:
    """Bytes of the whole array."""
    return math.prod(argument.shape) * item_bytes(argument.dtype)


def local_nbytes(argument: Argument, mesh: Sequence[int]) -> int:
    """Bytes of the part on one device."""
    return local_size(argument.shape, argument.layout, mesh) * item_bytes(argument.dtype)


@dataclass(frozen=True, slots=True)
class AxisUse:
    """What one mesh axis is used for. Shares are of bytes, 0 to 1.

    Attributes:
      name, size: the axis.
      examples: share of the batch whose dim 0 is split.
      other_dims: share of the batch that is split along another dim (a sequence, an image).
      experts: share of the parameters that is split by experts.
      gathered: share of the parameters that is stored split and gathered whole before use.
      tensors: share of the parameters that is split in use, experts left out.
      optimizer: share of the optimizer state that is split.
      optimizer_alone: share of the optimizer state that is split where its parameter is not.
      scattered: gradients are reduce-scattered rather than all-reduced.
      exchanged: there is an all-to-all over it.
      summed_bytes: bytes of partial sums combined in the backward pass and update.
      communicates: there is a collective over it.
    """

    name: str
    size: int
    examples: float
    other_dims: float
    experts: float
    gathered: float
    tensors: float
    optimizer: float
    optimizer_alone: float
    scattered: bool
    exchanged: bool
    summed_bytes: int
    communicates: bool

    @property
    def parameters(self) -> float:
        """Share of the parameters that is stored split."""
        return self.experts + self.gathered + self.tensors


def by_kind(plan: PlanFacts, kind: str) -> list[Argument]:
    """The arguments of one kind."""
    return [a for a in plan.arguments if a.kind == kind]


def parameter_of(plan: PlanFacts) -> dict[str, Argument]:
    """Optimizer leaf's name -> the parameter it belongs to: the same path below the parameters' root, same shape."""
    parameters = by_kind(plan, "parameter")
    paths = [keys(a.name) for a in parameters]
    root = len(shared_prefix(paths))
    leaves: dict[Keys, Argument] = {path[root:]: a for path, a in zip(paths, parameters, strict=True)}
    found = {}
    for leaf in by_kind(plan, "optimizer"):
        path = keys(leaf.name)
        owner = next((leaves[path[i:]] for i in range(len(path)) if path[i:] in leaves), None)
        if owner is not None and owner.shape == leaf.shape:
            found[leaf.name] = owner
    return found


def axis_uses(plan: PlanFacts) -> tuple[AxisUse, ...]:
    """What each mesh axis of more than one device is used for."""
    return tuple(_use(plan, i) for i, axis in enumerate(plan.mesh) if axis.size > 1)


def _use(plan: PlanFacts, axis: int) -> AxisUse:
    name, size = plan.mesh[axis].name, plan.mesh[axis].size
    over = [c for c in plan.collectives if name in c.axes]
    late = [c for c in over if c.phase != "forward" and c.cause.startswith("P(sum)")]
    scattered = sum(c.bytes * c.count for c in late if c.kind == "reduce-scatter")
    reduced = sum(c.bytes * c.count for c in late if c.kind == "all-reduce")
    batch = [a for a in by_kind(plan, "batch") if a.shape]
    parameters = by_kind(plan, "parameter")
    split = [a for a in parameters if a.layout[axis] >= 0]
    gathered = [a for a in split if _is_gathered(a, axis, plan)]
    rest = [a for a in split if a not in gathered]
    exchanged = any(c.kind == "all-to-all" for c in over)
    experts = [a for a in rest if _is_expert(a, axis, exchanged)]
    optimizer = by_kind(plan, "optimizer")
    owner = parameter_of(plan)
    alone = [a for a in optimizer if a.layout[axis] >= 0 and a.name in owner and owner[a.name].layout[axis] < 0]
    return AxisUse(
        name=name,
        size=size,
        examples=_share([a for a in batch if a.layout[axis] == 0], batch),
        other_dims=_share([a for a in batch if a.layout[axis] > 0], batch),
        experts=_share(experts, parameters),
        gathered=_share(gathered, parameters),
        tensors=_share([a for a in rest if a not in experts], parameters),
        optimizer=_share([a for a in optimizer if a.layout[axis] >= 0], optimizer),
        optimizer_alone=_share(alone, optimizer),
        scattered=scattered > reduced,
        exchanged=exchanged,
        summed_bytes=scattered + reduced,
        communicates=bool(over),
    )


def _share(some: Iterable[Argument], of: Iterable[Argument]) -> float:
    whole = sum(map(nbytes, of))
    return sum(map(nbytes, some)) / whole if whole else 0.0


def _is_expert(a: Argument, axis: int, exchanged: bool) -> bool:
    """Leading dim of three or more split, and named so or fed by an all-to-all."""
    named = any(word in a.name.lower() for word in _EXPERT_WORDS)
    return len(a.shape) >= 3 and a.layout[axis] == 0 and (named or exchanged)


def _is_gathered(a: Argument, axis: int, plan: PlanFacts) -> bool:
    """Whether a collective gathers a copy of this parameter's size, in its dtype or cast to half of it."""
    others = [m.size for i, m in enumerate(plan.mesh) if i != axis and a.layout[i] >= 0]
    sizes = {nbytes(a) // math.prod(others[:k]) for k in range(len(others) + 1)}
    sizes |= {nbytes(a) // n for n in others}
    sizes |= {n // 2 for n in sizes if item_bytes(a.dtype) > 2}
    cause = f"S{a.layout[axis]}->R"
    return any(
        c.kind == "all-gather"
        and c.axes == (plan.mesh[axis].name,)
        and c.cause == cause
        and c.bytes in sizes
        and c.phase != "update"
        for c in plan.collectives
    )


def sentence(plan: PlanFacts) -> str:
    """The plan in one sentence: its stages, if it has any, its mesh, and what each axis does.

    Shares below a tenth of the bytes are left out, those between a tenth and nine tenths are said. Of the batch
    the arrays that enter split are counted.
    """
    if plan.stages:
        return pipeline_sentence(plan)
    if plan.devices == 1:
        return "one device: nothing is split"
    return f"{_mesh_text(plan)}: {_uses_text(plan)}"


def pipeline_sentence(plan: PlanFacts) -> str:
    """A plan with stages in one sentence: schedule, micro-batches, and what each stage's devices do."""
    name = _SCHEDULES.get(plan.schedule, plan.schedule)
    said = [_stage_text(unstacked(stage.plan)) for stage in plan.stages]
    if len(said) == 1:
        return _alone_text(plan, said[0])
    names = device_names(plan)
    if names:
        said = [f"{what}, on {name}" for what, name in zip(said, names, strict=True)]
    runs = [(what, [s for s, _ in same]) for what, same in itertools.groupby(enumerate(said), key=lambda x: x[1])]
    if len(runs) == 1:
        where = f"in each {said[0]}"
    else:
        where = "; ".join(f"{_stages_text(stages)}: {what}" for what, stages in runs)
    return f"{len(plan.stages)}-stage {name} pipeline, {plan.microbatches} micro-batches; {where}"


def _alone_text(plan: PlanFacts, said: str) -> str:
    """One stage is no pipeline: what it does of a step at a time, and what it computes again."""
    parts = [f"{plan.microbatches} micro-batches"] if plan.microbatches > 1 else []
    remat = plan.stages[0].remat
    again = sum(word != NONE for word in remat)
    parts += [said, *([f"recomputes {again} of {len(remat)} units"] if again else [])]
    return "; ".join(parts)


_SCHEDULES = {"1f1b": "1F1B", "gpipe": "GPipe", "zb-h1": "ZB-H1 (zero bubble)", "interleaved": "interleaved 1F1B"}


def _stages_text(stages: Sequence[int]) -> str:
    return f"stage {stages[0]}" if len(stages) == 1 else f"stages {stages[0]}-{stages[-1]}"


def _stage_text(plan: PlanFacts) -> str:
    return "one device" if plan.devices == 1 else f"{_mesh_text(plan)}, {_uses_text(plan)}"


def _mesh_text(plan: PlanFacts) -> str:
    return f"mesh {' '.join(f'{a.name}={a.size}' for a in plan.mesh)}"


def unstacked(plan: PlanFacts) -> PlanFacts:
    """A stage's plan as of one micro-batch: parts of the batch without the dim along which they are stacked."""

    def one(a: Argument) -> Argument:
        if a.kind != "batch" or not a.shape:
            return a
        return replace(a, shape=a.shape[1:], layout=tuple(p - 1 if p >= 0 else p for p in a.layout))

    return replace(plan, arguments=tuple(map(one, plan.arguments)))


def axis_words(plan: PlanFacts) -> dict[str, str]:
    """What each mesh axis of more than one device is used for first of all: ``data parallel``, ``tensor parallel``."""
    order = {word: i for i, word in enumerate(_ORDER)}
    return {
        use.name: _BRIEF.get(word, word)
        for use, clauses in _axis_clauses(plan)
        for word in [min((before for before, _ in clauses), key=order.__getitem__)]
    }


def _axis_clauses(plan: PlanFacts) -> list[tuple[AxisUse, list[tuple[str, str]]]]:
    parameter_bytes = sum(local_nbytes(a, plan.mesh_shape) for a in by_kind(plan, "parameter"))
    batch = [a for a in by_kind(plan, "batch") if a.shape]
    # An array that enters whole says nothing of how it is used: the step slices it where it is needed.
    entering = _share([a for a in batch if max(a.layout) >= 0], batch)
    return [(use, _clauses(use, parameter_bytes, entering)) for use in axis_uses(plan)]


def _uses_text(plan: PlanFacts) -> str:
    """What each mesh axis does."""
    clauses: dict[tuple[int, str, str], list[str]] = {}  # (order, before, after the axis names) -> axis names
    for use, said in _axis_clauses(plan):
        for clause in said:
            clauses.setdefault((_ORDER.index(clause[0]), *clause), []).append(use.name)
    ordered = sorted(clauses.items(), key=lambda item: item[0][0])
    return ", ".join(f"{before} over {' and '.join(axes)}{after}" for (_, before, after), axes in ordered)


_DATA, _DIM, _SLICED = (
    "data parallel",
    "batch split along a later dim",
    "batch sliced inside the step, gradients summed",
)
_EXPERT, _TENSOR, _FSDP, _ZERO = "expert parallel", "tensor parallel", "parameters split", "optimizer state split"
_ACTIVATIONS, _NOTHING = "activations split", "nothing split"
_ORDER = (_DATA, _SLICED, _EXPERT, _TENSOR, _FSDP, _ZERO, _DIM, _ACTIVATIONS, _NOTHING)

_BRIEF = {_SLICED: _DATA, _DIM: "batch, later dim", _FSDP: "FSDP", _ZERO: _DATA}


def _clauses(use: AxisUse, parameter_bytes: int, entering: float) -> list[tuple[str, str]]:
    found = []
    if entering and use.examples / entering >= _SOME:
        found.append((_DATA, _part(use.examples / entering, "batch that is split")))
    if entering and use.other_dims / entering >= _SOME:
        found.append((_DIM, _part(use.other_dims / entering, "batch that is split")))
    if use.experts >= _SOME:
        found.append((_EXPERT, (" with all-to-all" if use.exchanged else "") + _part(use.experts, "parameters")))
    if use.tensors >= _SOME:
        found.append((_TENSOR, _part(use.tensors, "parameters")))
    if use.gathered >= _SOME:
        found.append((_FSDP, f" and gathered for use (FSDP, ZeRO-3){_part(use.gathered, 'parameters')}"))
    if use.optimizer_alone >= _SOME:
        zero = " and gradients reduce-scattered (ZeRO-2)" if use.scattered else " (ZeRO-1)"
        found.append((_ZERO, zero + _part(use.optimizer_alone, "optimizer state")))
    if any(before not in (_ZERO, _DIM) for before, _ in found):
        return found
    if use.summed_bytes > parameter_bytes / 2:
        return [(_SLICED, ""), *found]
    return found or [(_ACTIVATIONS if use.communicates else _NOTHING, "")]


def _part(share: float, of: str) -> str:
    return "" if share >= _ALL else f" for {share:.0%} of the {of}"
