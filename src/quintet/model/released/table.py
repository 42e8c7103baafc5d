"""Tables of names: what a released checkpoint calls a weight, and what it is here.

A row of a table is a `Rule`: patterns of their names ↔ patterns of ours, and what happens to the numbers between. In a
pattern `*` is a number and `**` any rest of a name; what they stand for is the same on both sides:

    Rule("model.layers.*.self_attn.**", "llm.blocks.*.attn.**")

The first row that knows a name, and whose own names the model has, takes it. A file and a model must agree to the last
weight: what no row knows, what is missing and what has another shape is refused by name.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from quintet.errors import CheckpointError
from quintet.model.mllm import MLLM
from quintet.model.released.files import Weights

__all__ = [
    "DROP",
    "Layout",
    "Plan",
    "Rule",
    "Step",
    "Way",
    "heads",
    "load",
    "match",
    "released_state",
    "rows",
    "same",
    "stack",
    "turned",
]

_Tensors = tuple[Tensor, ...]


# ---- what happens to the numbers ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Way:
    """How the tensors of a row become ours, and how ours become theirs again."""

    read: Callable[[_Tensors], _Tensors]
    write: Callable[[_Tensors], _Tensors]


same = Way(lambda theirs: theirs, lambda ours: ours)
"""One tensor, or several in the same order. A dimension of one more or less is no difference."""
turned = Way(lambda theirs: (theirs[0].mT,), lambda ours: (ours[0].mT,))
"""x @ W there, a linear layer's weight here."""
stack = Way(lambda theirs: (torch.stack(theirs),), lambda ours: ours[0].unbind())
"""One tensor an expert there, one for all of them here."""


def rows(*, parts: int) -> Way:
    """One tensor there, as many of equal size here, one below the other: queries, keys, values.

    >>> [piece.tolist() for piece in rows(parts=2).read((torch.arange(4),))]
    [[0, 1], [2, 3]]
    """
    return Way(lambda theirs: theirs[0].chunk(parts), lambda ours: (torch.cat(ours),))


def heads(count: int) -> Way:
    """One tensor there in which the queries, keys and values of each head stand together (Megatron's order).

    >>> [piece.tolist() for piece in heads(2).read((torch.arange(6),))]
    [[0, 3], [1, 4], [2, 5]]
    """

    def read(theirs: _Tensors) -> _Tensors:
        return tuple(piece.flatten(0, 1) for piece in theirs[0].unflatten(0, (count, 3, -1)).unbind(1))

    def write(ours: _Tensors) -> _Tensors:
        return (torch.stack([piece.unflatten(0, (count, -1)) for piece in ours], 1).flatten(0, 2),)

    return Way(read, write)


# ---- tables ------------------------------------------------------------------------------------------------------
DROP: tuple[str, ...] = ()
"""The right side of a row whose weights have no use here."""


@dataclass(frozen=True)
class Rule:
    """A row of a table. Several names on a side are one tensor each, in the order in which `way` takes them."""

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    way: Way = same
    adds: bool = False
    """Whether it is added to the weight, which is elsewhere: an adapter."""

    @property
    def left(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def right(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Layout:
    """A release: the composition that it is of, and its table."""

    model: MLLM.Config
    """The recipe's, unless what was released is another form of it."""
    rules: tuple[Rule, ...]
    elsewhere: tuple[str, ...] = ()
    """Patterns of our names that the file may leave out, all of a pattern or none: the release takes them as they were
    published, from the encoder's or the LLM's own files."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    """Our names → the number that fills them: what the release never trained and never loaded."""


@dataclass(frozen=True)
class Step:
    """Tensors of the file that become tensors of the model."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    way: Way
    adds: bool


@dataclass(frozen=True)
class Plan:
    """What becomes of a file: every name of it and of the model stands in exactly one place."""

    steps: tuple[Step, ...]
    dropped: tuple[str, ...]
    """Names of the file without use."""
    elsewhere: tuple[str, ...]
    """Names of the model that are not in the file."""
    fixed: Mapping[str, float]


def match(layout: Layout, theirs: Iterable[str], ours: Collection[str]) -> Plan:
    """Pairs the names of a file with those of a model.

    Raises:
        CheckpointError: names that no row knows, weights that the file lacks, or two weights for one place.
    """
    known = set(ours)
    found: dict[tuple[int, tuple[str, ...]], set[str]] = {}
    unknown: list[str] = []
    for name in theirs:
        if (row := _row(layout, name, known)) is None:
            unknown.append(name)
        else:
            found.setdefault(row, set()).add(name)
    steps: list[Step] = []
    dropped: list[str] = []
    missing: list[str] = []
    for (index, values), names in found.items():
        rule = layout.rules[index]
        left, right = ([_fill(p, values) for p in side] for side in (rule.left, rule.right))
        missing += [name for name in left if name not in names]
        if right:
            steps.append(Step(tuple(left), tuple(right), rule.way, rule.adds))
        else:
            dropped += sorted(names)
    taken = [name for step in steps if not step.adds for name in step.ours] + [*layout.fixed]
    twice = [name for name, count in Counter(taken).items() if count > 1]
    absent, elsewhere = _absent(layout, known - set(taken), known - layout.fixed.keys())
    missing += [_theirs(layout, name, known) for name in absent]
    added = {name for step in steps if step.adds for name in step.ours}
    missing += [f"the adapter of our {name}" for name in sorted(_adapted(layout, known) - added)]
    faults = {"has names that are not of this release": unknown, "lacks": missing, "has twice": twice}
    told = [f"{what} {_listed(names)}" for what, names in faults.items() if names]
    if told:
        raise CheckpointError(f"the checkpoint {'; it '.join(told)}")
    return Plan(tuple(steps), tuple(dropped), elsewhere, layout.fixed)


@torch.no_grad()
def load(model: MLLM, files: Mapping[str, Tensor], plan: Plan, *, dtype: torch.dtype) -> None:
    """Gives the model the tensors of a file, in `dtype`; what is in the file may be on the meta device in the model.

    Raises:
        CheckpointError: a shape that does not fit; nothing is changed then.
    """
    own = model.state_dict()
    faults = [fault for step in plan.steps for fault in _misfits(step, files, own)]
    if faults:
        raise CheckpointError(f"shapes do not fit: {'; '.join(faults)}")
    state = {name: torch.full(own[name].shape, number, dtype=dtype) for name, number in plan.fixed.items()}
    for step in plan.steps:
        made = step.way.read(tuple(files[name] for name in step.theirs))
        for name, value in zip(step.ours, made, strict=True):
            whole = own[name] + value.to(own[name]) if step.adds else value
            # A copy: pieces of one tensor would be one storage, which cannot be saved as two.
            state[name] = whole.reshape(own[name].shape).to(dtype, copy=True).contiguous()
    model.load_state_dict(state, strict=False, assign=True)


def made_shape(plan: Plan, files: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a weight of ours as the file has it; empty if it is not in the file. No numbers are read."""
    for step in plan.steps:
        if name in step.ours and not step.adds:
            shapes = (torch.empty(_shape(files, theirs), device="meta") for theirs in step.theirs)
            return tuple(step.way.read(tuple(shapes))[step.ours.index(name)].shape)
    return ()


def released_state(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ours under the names of the release: the way back, without what `load` dropped.

    Shapes are those of our tensors where the two differ in a dimension of one.
    """
    out: dict[str, Tensor] = {}
    done: set[tuple[int, tuple[str, ...]]] = set()
    for name in state:
        row = _row_of_ours(layout, name, state)
        if row is None or row in done:
            continue
        done.add(row)
        rule, values = layout.rules[row[0]], row[1]
        made = rule.way.write(tuple(state[_fill(p, values)] for p in rule.right))
        out |= zip((_fill(p, values) for p in rule.left), made, strict=True)
    return out


# ---- pieces ------------------------------------------------------------------------------------------------------
def _row(layout: Layout, name: str, ours: set[str]) -> tuple[int, tuple[str, ...]] | None:
    """The row that takes a name of the file, and what its marks stand for."""
    for index, rule in enumerate(layout.rules):
        for pattern in rule.left:
            values = _values(pattern, name)
            if values is not None and ours.issuperset(_fill(p, values) for p in rule.right):
                return index, values
    return None


def _row_of_ours(layout: Layout, name: str, ours: Collection[str]) -> tuple[int, tuple[str, ...]] | None:
    """The row that gives a weight of ours, and what its marks stand for."""
    for index, rule in enumerate(layout.rules):
        for pattern in () if rule.adds else rule.right:
            values = _values(pattern, name)
            if values is not None and all(_fill(p, values) in ours for p in rule.right):
                return index, values
    return None


def _absent(layout: Layout, left: set[str], ours: set[str]) -> tuple[list[str], tuple[str, ...]]:
    """Of our names that the file does not give: those that it must give, and those that may be elsewhere."""
    elsewhere: set[str] = set()
    for pattern in layout.elsewhere:
        group = {name for name in ours if _values(pattern, name) is not None} - elsewhere
        if group and group <= left:
            elsewhere |= group
    return sorted(left - elsewhere), tuple(sorted(elsewhere))


def _adapted(layout: Layout, ours: Iterable[str]) -> set[str]:
    """Our names that a row adds to."""
    patterns = [pattern for rule in layout.rules if rule.adds for pattern in rule.right]
    return {name for name in ours if any(_values(pattern, name) is not None for pattern in patterns)}


def _theirs(layout: Layout, name: str, ours: Collection[str]) -> str:
    """What the file should have called a weight of ours."""
    row = _row_of_ours(layout, name, ours)
    theirs = ", ".join(_fill(p, row[1]) for p in layout.rules[row[0]].left) if row else "whatever it is called there"
    return f"{theirs} (our {name})"


def _misfits(step: Step, files: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the shapes of a step; no numbers are read."""
    shapes = [_shape(files, name) for name in step.theirs]
    what = " and ".join(f"{name} {list(shape)}" for name, shape in zip(step.theirs, shapes, strict=True))
    try:
        made = step.way.read(tuple(torch.empty(shape, device="meta") for shape in shapes))
    except (RuntimeError, IndexError) as error:
        return [f"{what} cannot become {', '.join(step.ours)} ({error})"]
    if [_bare(piece) for piece in made] == [_bare(own[name]) for name in step.ours]:
        return []
    wanted = ", ".join(f"{name} {list(own[name].shape)}" for name in step.ours)
    return [f"{what} would be {', '.join(str(list(piece.shape)) for piece in made)} for {wanted}"]


def _bare(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _shape(files: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return files.shape(name) if isinstance(files, Weights) else tuple(files[name].shape)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    marks = {"**": r"(.+)", "*": r"(\d+)"}
    return re.compile("".join(marks.get(piece) or re.escape(piece) for piece in re.split(r"(\*+)", pattern)))


def _values(pattern: str, name: str) -> tuple[str, ...] | None:
    """What the marks of a pattern stand for in a name; None if it is another."""
    found = _compiled(pattern).fullmatch(name)
    return found.groups() if found else None


def _fill(pattern: str, values: tuple[str, ...]) -> str:
    given = iter(values)
    return re.sub(r"\*+", lambda _: next(given), pattern)


def _listed(names: Iterable[str]) -> str:
    """All names; those that differ in numbers alone as one.

    >>> _listed(["b", "layers.0.a", "layers.1.a"])
    'b, layers.*.a (2)'
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return ", ".join(f"{key} ({len(found)})" if len(found) > 1 else found[0] for key, found in alike.items())
