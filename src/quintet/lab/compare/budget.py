"""Equal budgets: so many tokens, FLOPs, samples or minutes of training, shared among a recipe's stages.

A recipe's own amounts say how its stages relate; a budget stretches or shrinks all of them by one factor, counted in
the budget's unit, and each stage keeps at least one step. Only the number of steps changes: the n-th sample of a stage
is the same one under every budget and for every recipe, since the order of rows follows from the seed alone.

tokens     columns that the LLM reads, media and text: the mean over the first `PROBED` samples in the seed's order
flops      forward and backward by the arithmetic of `quintet show`, for its sample of one picture and 128 tokens
samples    conversations or captions, however long
minutes    of training steps on this machine: the median of a few steps that are run first to see how fast they are
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from quintet.data.pipeline import Plan, Planner, Source, measure_with
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError, DataError
from quintet.recipes._recipe import Recipe
from quintet.training.stage import Stage

__all__ = ["Budget", "Unit", "share", "tokens_per_sample"]

Unit = Literal["tokens", "flops", "samples", "minutes"]

PROBED = 512

_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SPELLING = re.compile(rf"(\d+(?:\.\d+)?(?:e\d+)?)({'|'.join(_FACTORS)})-({'|'.join(get_args(Unit))})")


@dataclass(frozen=True)
class Budget:
    """How much a recipe may train, over all its stages."""

    amount: float
    unit: Unit
    text: str
    """As it was asked for."""

    @staticmethod
    def parse(text: str) -> "Budget":
        """A number, k, M, G, T, P or E if wanted, a hyphen, and the unit.

        >>> Budget.parse("40k-tokens").amount, Budget.parse("1.5-minutes").unit
        (40000.0, 'minutes')

        Raises:
            ConfigError: it is spelt otherwise, or it is nothing.
        """
        found = _SPELLING.fullmatch(text.strip())
        if found is None or float(found[1]) == 0:
            raise ConfigError(
                f"a budget of {text!r} is none; write a number and one of {', '.join(get_args(Unit))}: 40k-tokens, "
                "2T-flops, 500-samples, 1.5-minutes"
            )
        number, factor, unit = found.groups()
        return Budget(float(number) * _FACTORS[factor], unit, text.strip())  # pyright: ignore[reportArgumentType]


def share(budget: Budget, recipe: str, *, own: Mapping[str, int], costs: Mapping[str, float]) -> dict[str, int]:
    """Steps for each stage, when a stage has `own` steps by itself and one of them costs `costs` of the unit.

    >>> share(Budget.parse("800-samples"), "llava", own={"align": 10, "tune": 20}, costs={"align": 32, "tune": 16})
    {'align': 12, 'tune': 25}

    Raises:
        ConfigError: the budget does not pay for one step of every stage.
    """
    least = sum(costs.values())
    if budget.amount < least:
        each = ", ".join(f"{cost:,.4g} for one of {stage!r}" for stage, cost in costs.items())
        raise ConfigError(
            f"a budget of {budget.text} gives {recipe} no step in every stage: it takes {each} ({budget.unit}); "
            f"give at least {least:,.4g}"
        )
    factor = budget.amount / sum(own[stage] * costs[stage] for stage in own)
    return {stage: max(1, round(factor * steps)) for stage, steps in own.items()}


def tokens_per_sample(recipe: Recipe, stage: Stage, source: Source, tokenizer: Tokenizer, *, seed: int) -> float:
    """The mean length of what the stage reads first; samples that it would drop are left out, as they are in training.

    Raises:
        DataError: none of them can be used.
    """
    model = recipe.model
    specs = {kind: model.spec(kind) for kind in model.encoders}
    plan = Plan(batch=stage.batch, steps=1, row=stage.row, micro=stage.micro, seed=seed, completion=stage.completion)
    planner = Planner(source, stage.template, tokenizer, measure_with(specs, model.columns), plan)
    lengths, fault = [], None
    for n in range(min(PROBED, len(source))):
        try:
            lengths.append(len(planner.tokens(n)))
        except DataError as error:
            fault = error
    if not lengths:
        raise fault or DataError("no-rows", "there is no row to train on", file=source.name)
    return float(np.mean(lengths))
