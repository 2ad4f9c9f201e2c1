"""Layouts and whole plans in the field's words. Every word follows from the facts of the plan alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autopar.ir import NONE, item_bytes
from autopar.mesh import Cluster
from autopar.plan import Argument, PlanFacts
from autopar.report.common import device_names
from autopar.report.dimensions import is_expert
from autopar.report.parts import head
from autopar.report.paths import Keys, keys, shared_prefix
from autopar.report.places import axes_place, level_names
from autopar.sharding.layout import local_size

_SOME, _ALL = 0.1, 0.9  # shares of bytes below which a thing is not said, and above which it is said plainly
_UNLIKE = 3  # ways of stages that a sentence says
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

    @property
    def zero(self) -> str:
        """What it is called to split the optimizer state alone: by whether gradients are reduced whole."""
        return _ZERO_2 if self.scattered else _ZERO_1


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
    gathered = [a for a in split if is_gathered(a, axis, plan)]
    rest = [a for a in split if a not in gathered]
    exchanged = any(c.kind == "all-to-all" for c in over)
    experts = [a for a in rest if is_expert(a, axis, exchanged)]
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


def is_gathered(a: Argument, axis: int, plan: PlanFacts) -> bool:
    """Whether a parameter is gathered over a mesh axis for use: a collective copies it, perhaps at half its bytes."""
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
    """The plan in one sentence, in the field's words: stages and schedule, micro-batches, and what each axis does.

    Shares below a tenth of the bytes are left out, those between a tenth and nine tenths are said. Of the batch
    the arrays that enter split are counted.
    """
    if plan.stages:
        return pipeline_sentence(plan)
    if plan.devices == 1:
        return _joined(plan, "one device: nothing is split")
    return _joined(plan, _uses_text(plan, level_names(Cluster.from_dict(plan.cluster))))


def _joined(plan: PlanFacts, said: str) -> str:
    return f"{plan.microbatches} micro-batches, {said}" if plan.microbatches > 1 else said


def pipeline_sentence(plan: PlanFacts) -> str:
    """A plan with stages in one sentence: schedule, micro-batches, and what each stage's devices do."""
    cluster = Cluster.from_dict(plan.cluster)
    said = [stage_sentence(stage.plan, level_names(cluster, stage.devices[0])) for stage in plan.stages]
    if len(said) == 1:
        return _alone_text(plan, said[0])
    names = device_names(plan)
    if names:
        said = [f"{what}, on {name}" for what, name in zip(said, names, strict=True)]
    alike: dict[str, list[int]] = {}
    for s, what in enumerate(said):
        alike.setdefault(what, []).append(s)
    pipeline = f"{len(plan.stages)}-stage {_SCHEDULES.get(plan.schedule, plan.schedule)}"
    start = f"{pipeline}, {plan.microbatches} micro-batches"
    if len(alike) == 1:
        return f"{start}, {said[0]}"
    shown, rest = head(list(alike.items()), _UNLIKE)
    where = "; ".join(f"{stages_text(stages)}: {what}" for what, stages in shown)
    more = f"; {sum(len(stages) for _, stages in rest)} more stages, {len(rest)} ways" if rest else ""
    return f"{start}; {where}{more}"


def _alone_text(plan: PlanFacts, said: str) -> str:
    """One stage is no pipeline: what it does of a step at a time, and what it computes again."""
    remat = plan.stages[0].remat
    again = sum(word != NONE for word in remat)
    return _joined(plan, said) + (f", recomputes {again} of {len(remat)} units" if again else "")


_SCHEDULES = {"1f1b": "1F1B", "gpipe": "GPipe", "zb-h1": "ZB-H1 (zero bubble)", "interleaved": "interleaved 1F1B"}


def stages_text(stages: Sequence[int]) -> str:
    """Some stages, those that follow each other as a range.

    >>> stages_text([3]), stages_text([0, 1, 2, 5])
    ('stage 3', 'stages 0-2, 5')
    """
    return f"stage{'s' if len(stages) > 1 else ''} {ranges_text(stages)}"


def ranges_text(numbers: Sequence[int]) -> str:
    """Rising numbers, those that follow each other as a range.

    >>> ranges_text([3]), ranges_text([0, 1, 2, 5])
    ('3', '0-2, 5')
    """
    runs = [
        [n for _, n in run] for _, run in itertools.groupby(enumerate(numbers), key=lambda found: found[1] - found[0])
    ]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def stage_sentence(plan: PlanFacts, levels: Sequence[str]) -> str:
    """What the devices of a stage do.

    Args:
      plan: of the stage.
      levels: of the links on its island (:func:`autopar.report.places.level_names`).
    """
    return "one device" if plan.devices == 1 else _uses_text(plan, levels)


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


def _uses_text(plan: PlanFacts, levels: Sequence[str]) -> str:
    """What each mesh axis does, over how many devices, and where these are."""
    clauses: dict[tuple[str, str], list[AxisUse]] = {}  # (before the number of devices, after the axes) -> axes
    for use, said in _axis_clauses(plan):
        for clause in said:
            clauses.setdefault(clause, []).append(use)
    found: list[str] = []
    placed: set[str] = set()
    for (what, after), uses in sorted(clauses.items(), key=lambda item: _ORDER.index(item[0][0])):
        axes = tuple(use.name for use in uses)
        place = "" if set(axes) <= placed else axes_place(plan, axes, levels)
        placed |= set(axes)
        over = "" if what.endswith("parallel") else "over "
        where = f" {place}" if place else ""
        found.append(f"{what} {over}{math.prod(use.size for use in uses)}{where} ({', '.join(axes)}{after})")
    return ", ".join(found)


_DATA, _DIM, _SLICED = (
    "data parallel",
    "batch split along a later dim",
    "batch sliced inside the step, gradients summed",
)
_EXPERT, _TENSOR, _FSDP = "expert parallel", "tensor parallel", "FSDP (ZeRO-3)"
_ZERO_1, _ZERO_2 = "ZeRO-1", "ZeRO-2"
_ACTIVATIONS, _NOTHING = "activations split", "nothing split"
_ORDER = (_DATA, _SLICED, _EXPERT, _TENSOR, _FSDP, _ZERO_1, _ZERO_2, _DIM, _ACTIVATIONS, _NOTHING)

_BRIEF = {_SLICED: _DATA, _DIM: "batch, later dim", _FSDP: "FSDP", _ZERO_1: _DATA, _ZERO_2: _DATA}


def _clauses(use: AxisUse, parameter_bytes: int, entering: float) -> list[tuple[str, str]]:
    """(what an axis does, what is to be added)."""
    found = []
    if entering and use.examples / entering >= _SOME:
        found.append((_DATA, _part(use.examples / entering, "split batch")))
    if entering and use.other_dims / entering >= _SOME:
        found.append((_DIM, _part(use.other_dims / entering, "split batch")))
    if use.experts >= _SOME:
        found.append((_EXPERT, ("; all-to-all" if use.exchanged else "") + _part(use.experts, "parameters")))
    if use.tensors >= _SOME:
        found.append((_TENSOR, _part(use.tensors, "parameters")))
    if use.gathered >= _SOME:
        found.append((_FSDP, _part(use.gathered, "parameters")))
    if use.optimizer_alone >= _SOME:
        found.append((use.zero, _part(use.optimizer_alone, "optimizer state")))
    if any(before not in (_ZERO_1, _ZERO_2, _DIM) for before, _ in found):
        return found
    if use.summed_bytes > parameter_bytes / 2:
        return [(_SLICED, ""), *found]
    return found or [(_ACTIVATIONS if use.communicates else _NOTHING, "")]


def _part(share: float, of: str) -> str:
    return "" if share >= _ALL else f"; {share:.0%} of the {of}"
