"""What is made of an answer's reward, token by token, in numbers set by hand: by the planner that draws answers.

What the model says, how likely it finds that and what it expects are told; all that follows is the code that trains.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintet.answers import Answer
from quintet.components import lora
from quintet.components.lora import Lora, LoraLinear
from quintet.errors import ConfigError
from quintet.model.mllm import Output
from quintet.recipes import llava15
from quintet.recipes.align import llava_rlhf
from quintet.training import rolling
from quintet.training.planning import planner
from quintet.training.rolling import Drawn, Rolling
from quintet.training.rollout import Rollouts
from quintet.values import Batch, Node, Sample, Tokens
from systems import Small, says, shown, user

REWARDS, VALUES = [-0.01, -0.02, 0.97], [0.5, 0.4, 0.6]
"""Of methods of alignment, section 5: a cost of 0.1 a nat, 1 at the end."""
PPO = Rollouts(prompts=1, group=1, advantage="gae", kl=0.1, gamma=1.0, lam=0.95, whiten=False, reward="told")
OLD, BEFORE = [0.1, 0.2, 0.3], [0.0, 0.0, 0.0]
"""log π and log π_ref of three tokens: κ (log π − log π_ref) is 0.01, 0.02 and 0.03."""


class Rows:
    """Prompts with their true answers."""

    name = "prompts"

    def __init__(self, rows: int, numbers: dict[str, float]) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return self.rows

    def sample(self, index: int) -> Sample:
        asked = Node((user(shown(index), "What is here?"),))
        return Sample(replace(asked, children=(Node((says("A circle."),), answer=Answer(numbers=self.numbers)),)))


class Told(Rolling):
    """A planner whose model says `said` to every prompt, and finds each token as likely as it is told."""

    said: Sequence[Sequence[int]]
    old: Sequence[float]
    before: Sequence[float]

    def _answer(self, prompts: list[Tokens], seed: int) -> list[list[list[int]]]:
        return [[list(ids) for ids in self.said] for _ in prompts]

    def _seen(self, batch: Batch) -> tuple[Output, Tensor]:
        on = next(m for m in self.model.modules() if isinstance(m, LoraLinear)).active
        return Output(torch.zeros(1)), torch.tensor(list(self.old if on else self.before))


@pytest.fixture(scope="module")
def small() -> Small:
    made = Small(llava15.recipe())
    made.model.with_score()
    lora.apply(made.model.llm, Lora(rank=2))
    return made


@pytest.fixture
def drawn(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Drawn, dict[str, Any]]]:
    """What is known of the first iteration's answers, and what is written of it."""
    made = llava_rlhf.method(small.processor.template).stages[0]

    def draw(
        how: Rollouts, *, answers: Sequence[Sequence[float]] = ((1.0,),), lengths: Sequence[int] = (3,),
        old: Sequence[float] = OLD, before: Sequence[float] = BEFORE, values: Sequence[float] = VALUES,
        ends: bool = True, row: dict[str, float] | None = None,
    ) -> tuple[Drawn, dict[str, Any]]:  # fmt: skip
        stage = replace(made, batch=1, steps=1, rollouts=how)
        rows = Rows(1, row or {"length_bonus": 0.0})
        plain = planner(small.model, stage, rows, small.processor.tokenizer, seed=0)
        place = Told(
            plain, small.model, stage, folder=tmp_path, precision="fp32", processor=small.processor,
            reward=lambda samples, said: [list(each) for each in answers],
        )  # fmt: skip
        word = small.processor.tokenizer.encode("a")[0][0]
        place.said = [[word] * length for length in lengths]
        place.stops = lambda ids: ends
        place.old, place.before = old, before
        monkeypatch.setattr(rolling, "valued", lambda *_: torch.tensor(list(values)))
        [found] = place._of(0)
        return found, json.loads((tmp_path / f"{stage.name}-0.json").read_text())

    return draw


Draw = Callable[..., tuple[Drawn, dict[str, Any]]]


def known(found: Drawn, name: str) -> list[float]:
    """A number of every token that the model said."""
    return found.tokens.known[name][found.tokens.learnt].tolist()


def near(*values: float) -> Any:
    return pytest.approx(list(values), abs=1e-6)


def test_advantages_and_returns_are_those_of_a_known_answer(drawn: Draw) -> None:
    """Section 5: δ = (−0.11, 0.18, 0.37); A_3 = 0.37, A_2 = 0.18 + 0.95 · 0.37, A_1 = −0.11 + 0.95 · 0.5315."""
    found, facts = drawn(PPO)
    assert known(found, "advantage") == near(0.394925, 0.5315, 0.37)
    assert known(found, "return") == near(0.894925, 0.9315, 0.97)
    assert known(found, "value") == near(*VALUES)
    assert known(found, "old") == near(*OLD)
    assert known(found, "reference") == near(*BEFORE)
    assert facts["kl"] == pytest.approx(0.6)


def test_with_lambda_1_returns_are_what_is_still_earned(drawn: Draw) -> None:
    """Section 5: A (0.44, 0.55, 0.37), returns (0.94, 0.95, 0.97)."""
    found, _ = drawn(replace(PPO, lam=1.0))
    assert known(found, "advantage") == near(0.44, 0.55, 0.37)
    assert known(found, "return") == near(0.94, 0.95, 0.97)


def test_each_answer_is_paid_at_its_own_last_token_and_a_later_one_is_worth_gamma_of_that(drawn: Draw) -> None:
    """Two answers of 1 and 2 tokens earn 1 and 2; without KL, values of 0 and λ = 1, γ = ½."""
    how = replace(PPO, group=2, kl=0.0, lam=1.0, gamma=0.5)
    found, _ = drawn(how, answers=((1.0, 2.0),), lengths=(1, 2), old=OLD, values=[0.0] * 3)
    assert known(found, "return") == near(1.0, 1.0, 2.0)


def test_a_floor_counts_only_what_drifted_away(drawn: Draw) -> None:
    """κ 0.1, log-ratios (0.5, −0.5, 0.2): they cost 0.05, −0.05, 0.02, and with a floor 0.05, 0, 0.02."""
    how, ratios = replace(PPO, lam=1.0), {"old": [0.5, -0.5, 0.2], "values": [0.0] * 3}
    plain, _ = drawn(how, **ratios)
    assert known(plain, "return") == near(1 - 0.02, 1 - 0.02 + 0.05, 1 - 0.02)


def test_a_floor_leaves_what_drifted_back_without_a_gain(drawn: Draw) -> None:
    found, _ = drawn(replace(PPO, lam=1.0, floor=True), old=[0.5, -0.5, 0.2], values=[0.0] * 3)
    assert known(found, "return") == near(1 - 0.07, 1 - 0.02, 1 - 0.02)


def test_k3_costs_what_section_5_says(drawn: Draw) -> None:
    """Of log-ratios −0.2, 0, 0.5: 0.0214028, 0, 0.1065307."""
    found, _ = drawn(replace(PPO, lam=1.0, kl=1.0, estimator="k3"), old=[-0.2, 0.0, 0.5], values=[0.0] * 3)
    assert known(found, "return") == near(1 - 0.1279335, 1 - 0.1065307, 1 - 0.1065307)


def test_all_that_is_paid_is_multiplied_the_cost_of_kl_too(drawn: Draw) -> None:
    """LLaVA-RLHF's code: (1 − 0.03) · 10 at the end, −0.2 and −0.1 before."""
    found, _ = drawn(replace(PPO, lam=1.0, times=10.0), values=[0.0] * 3)
    assert known(found, "return") == near(9.4, 9.5, 9.7)


def test_an_answer_that_does_not_end_pays_for_that_times_all(drawn: Draw) -> None:
    found, _ = drawn(replace(PPO, kl=0.0, lam=1.0, times=10.0, unended=-8.0), values=[0.0] * 3, ends=False)
    assert known(found, "return") == near(-70.0, -70.0, -70.0)


def test_one_that_ends_pays_nothing(drawn: Draw) -> None:
    found, _ = drawn(replace(PPO, kl=0.0, lam=1.0, unended=-8.0), values=[0.0] * 3)
    assert known(found, "return") == near(1.0, 1.0, 1.0)


def test_the_price_of_not_ending_can_stand_for_the_reward_and_a_bias_is_added_to_all(drawn: Draw) -> None:
    """−8 instead of 1, and ½ for everyone; what rules add stays: 2 for the right choice, 3 of 6 tokens at 10 are 5."""
    how = replace(
        PPO, kl=0.0, lam=1.0, unended=-8.0, unended_replaces=True, bias=0.5, correct=2.0, length=10.0, max_tokens=6
    )
    row = {"caption_type": 1.0, "length_bonus": 1.0}
    found, facts = drawn(how, values=[0.0] * 3, ends=False, row=row)
    assert facts["symbolic"] == [[-5.0]]
    assert known(found, "return") == near(*[-8.0 + 0.5 - 5.0] * 3)


def test_a_row_that_says_no_price_of_length_pays_none(drawn: Draw) -> None:
    _, facts = drawn(replace(PPO, length=10.0, max_tokens=6), row={"caption_type": 1.0})
    assert facts["symbolic"] == [[0.0]]


def test_whitened_advantages_have_no_mean_and_a_deviation_of_1(drawn: Draw) -> None:
    """Of (0.44, 0.55, 0.37): the mean is 0.453333, the deviation √0.00548889 = 0.074087."""
    found, _ = drawn(replace(PPO, lam=1.0, whiten=True))
    assert known(found, "advantage") == pytest.approx(
        [-0.0133333 / 0.074087, 0.0966667 / 0.074087, -0.0833333 / 0.074087], abs=1e-4
    )
    assert known(found, "return") == near(0.94, 0.95, 0.97)


def test_whitened_rewards_keep_their_mean_and_are_not_multiplied(drawn: Draw) -> None:
    """(−0.01, −0.02, 0.97): mean 0.31333, deviation 0.464352; each is (r − mean) / deviation + mean."""
    found, _ = drawn(replace(PPO, lam=1.0, times=10.0, whiten_rewards=True), values=[0.0] * 3)
    each = [(r - 0.3133333) / 0.4643514 + 0.3133333 for r in REWARDS]
    assert known(found, "return") == pytest.approx([sum(each), sum(each[1:]), each[2]], abs=1e-5)


@pytest.mark.parametrize(("kl", "after"), [(0.6, 0.1 * (1 + 0.2 / 10_000)), (0.0, 0.1 * (1 - 0.2 / 10_000))])
def test_what_kl_costs_follows_its_target(drawn: Draw, kl: float, after: float) -> None:
    """κ (1 ± 0.2 · 1 answer / 10,000), where KL is far over or under 0.1; this iteration was paid with 0.1."""
    found, facts = drawn(replace(PPO, lam=1.0, target=0.1), old=[kl / 3] * 3, values=[0.0] * 3)
    assert facts["kl"] == pytest.approx(kl)
    assert facts["kl_cost_after"] == pytest.approx(after, rel=1e-12)
    assert known(found, "return")[0] == pytest.approx(1 - 0.1 * kl, abs=1e-6)


def test_without_a_target_kl_costs_the_same(drawn: Draw) -> None:
    assert drawn(PPO)[1]["kl_cost_after"] == 0.1


@pytest.mark.parametrize(("scale", "expected"), [(False, [-1.0, 0.0, 0.0, 1.0]), (True, [-0.9999, 0, 0, 0.9999])])
def test_a_group_is_compared_with_its_mean(drawn: Draw, scale: bool, expected: list[float]) -> None:
    """Rewards 1, 2, 3 of answers of 1, 2 and 1 tokens; their deviation is 1, and 1e-4 is added to it."""
    how = Rollouts(prompts=1, group=3, reward="told", scale=scale)
    told = {"old": [0.0] * 4, "before": [0.0] * 4}
    found, _ = drawn(how, answers=((1.0, 2.0, 3.0),), lengths=(1, 2, 1), **told)
    assert known(found, "advantage") == pytest.approx(expected, abs=1e-6)
    assert found.rewards == (1.0, 2.0, 3.0)
    assert [answer.score for _, answer in found.tokens.answers] == [1.0, 2.0, 3.0]


def test_what_an_iteration_holds_is_read_back_as_it_was_made(small: Small, drawn: Draw) -> None:
    first, _ = drawn(replace(PPO, lam=1.0, target=0.1))
    again, _ = drawn(replace(PPO, lam=0.5, target=0.1), answers=((9.0,),))
    assert known(again, "advantage") == known(first, "advantage"), "the second one is not made again"


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="lam"):
        replace(PPO, lam=1.5)
    # What PPO reads, GRPO would pass over in silence.
    for setting in ({"kl": 0.1}, {"target": 6.0}, {"lam": 0.9}, {"whiten": False}, {"whiten_rewards": True}):
        [name] = setting
        with pytest.raises(ConfigError, match=f"{name} is .* nothing reads it where"):
            Rollouts(**setting)  # type: ignore[arg-type]
        replace(PPO, **setting)  # type: ignore[arg-type]
