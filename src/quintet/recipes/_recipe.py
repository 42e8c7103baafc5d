"""What a recipe is: one model, its stages, its paper. A recipe is a module with a function `recipe()`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from quintet.config.base import Config
from quintet.data.template import Template
from quintet.errors import ConfigError, nearest
from quintet.model.mllm import MLLM
from quintet.recipes._figures import arithmetic, printed
from quintet.training.stage import Stage

__all__ = ["Paper", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Paper(Config):
    """Where a system comes from, and the figures that a build is held against.

    Figures are text (`quintet.recipes._figures`): printed ones as they are printed, "3.15 M"; arithmetic with its
    terms, "768 · 4096 + 4096". A part is any part and all below it, so `connectors` is every connector; `together` is
    the whole model.
    """

    title: str
    authors: str
    year: int
    arxiv: str
    """Its number there; empty if it is not there, and `url` says where it is."""
    url: str = ""
    published: Mapping[str, str | int] = field(default_factory=dict)
    """Part → parameters that the paper or the model card prints; a whole number is printed in all its digits."""
    derived: Mapping[str, str] = field(default_factory=dict)
    """Part → parameters as they follow from published code, tables or the parts that we took: ours exactly."""
    trainable: Mapping[str, str | int] = field(default_factory=dict)
    """Stage → parameters that train in it, where they are printed."""
    differs: Mapping[str, str] = field(default_factory=dict)
    """Part or stage → why ours is more than 1 % from what is printed, if only by rounding."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Modality → tokens an item takes."""

    def __post_init__(self) -> None:
        stated = {**self.published, **self.trainable}
        for figure in stated.values():
            printed(str(figure))
        for figure in self.derived.values():
            arithmetic(figure)
        for name in self.differs:
            if name not in stated:
                raise ConfigError(f"{name!r} differs from nothing that is printed{nearest(name, stated)}")

    @property
    def link(self) -> str:
        """Where it can be read."""
        return self.url or f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """A system of the surveys: structure, stages and paper. Its scale is chosen apart (`at_scale`)."""

    model: MLLM.Config
    stages: tuple[Stage, ...]
    paper: Paper
    chat: Template | None = None
    """How the finished model is talked to, where that is not as in its last stage (BLIP-2 trains on captions only)."""
    before: tuple[Stage, ...] = ()
    """Stages of the system that this one starts from. At full scale its published weights stand for them; below it
    there are none, and these stages run first (`at_scale`): what the paper freezes must have learnt something."""
    starter: float = 1.0
    """Share of the starter scale's samples that it learns from: where each costs more, fewer keep a recipe within
    four minutes on two cores; over 1 where the scale's own are too few."""
    starter_rates: Mapping[str, float] = field(default_factory=dict)
    """Part → peak rate at the starter scale, where that is not the scale's own."""
    starter_shares: Mapping[str, float] = field(default_factory=dict)
    """Stage → its share of `starter`'s samples, in any unit, 1 where it is not named. The stages of `before` share as
    many among themselves."""

    def __post_init__(self) -> None:
        names = [s.name for s in (*self.before, *self.stages)]
        if not self.stages or len(set(names)) != len(names):
            raise ConfigError(f"stages are {names}; a recipe needs at least one, each with a name of its own")
        for name, share in self.starter_shares.items():
            if name not in names:
                raise ConfigError(f"starter_shares has {name!r}, which is no stage{nearest(name, names)}")
            if not 0 < share < inf:
                raise ConfigError(f"starter_shares has {share} for {name!r}; a stage's share is a number over 0")
        parts = list(dict.fromkeys(part for stage in (*self.before, *self.stages) for part in stage.train))
        for part, rate in self.starter_rates.items():
            if part not in parts:
                raise ConfigError(f"starter_rates has {part!r}, which no stage trains{nearest(part, parts)}")
            if not 0 < rate < inf:
                raise ConfigError(f"starter_rates has {rate} for {part!r}; a rate is a number over 0")

    @property
    def template(self) -> Template:
        """How the finished model is talked to: as in its last stage, unless the recipe says otherwise."""
        return self.chat or self.stages[-1].template

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """The special tokens that the templates of all stages add that the LLM reads, in order."""
        reads = [stage for stage in self.stages if stage.reads]
        return tuple(dict.fromkeys(token for stage in reads for token in stage.template.added_tokens))

    def build(self) -> MLLM:
        """The model with random weights, and a row for each added token after the published ones."""
        rows, count = self.model.llm.vocab, len(self.added_tokens)
        return self.model.build(vocab=rows + count, added=range(rows, rows + count))

    def only(self, names: list[str]) -> tuple[Stage, ...]:
        """The stages of these names, in the recipe's order."""
        known = [s.name for s in self.stages]
        for name in names:
            if name not in known:
                raise ConfigError(f"no stage {name!r}{nearest(name, known)}")
        return tuple(s for s in self.stages if s.name in names)
