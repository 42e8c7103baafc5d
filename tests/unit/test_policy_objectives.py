"""The objectives `policy` and `reward` as they run: their values by hand, their gradients by differences."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.answers import Answer
from quintet.components import lora
from quintet.components.lora import Lora
from quintet.model.mllm import Output
from quintet.recipes import llava15
from quintet.training.objectives.policy import VALUE, Policy, counted, policy
from quintet.training.objectives.reward import Reward, reward
from quintet.values import Batch, Node, Sample
from systems import Small, says, shown, user

LN = math.log


def answered(*answers: Answer, words: int = 1) -> Sample:
    """Answers of equal words to a question about a picture."""
    branches = tuple(Node((says("a" * words * (n + 1)),), answer=a) for n, a in enumerate(answers))
    return Sample(Node((user(shown(1), "What is here?"),), branches))


@pytest.fixture(scope="module")
def plain() -> Small:
    """Whose parts are of no interest: what it finds is told."""
    return Small(llava15.recipe())


# ---- values -----------------------------------------------------------------------------------------------------
class Told(nn.Module):
    """What stands for a model: the log-probability, the value and the words that follow, of every target."""

    def __init__(self, logps: list[float], scores: list[float], logits: list[list[float]] | None = None) -> None:
        super().__init__()
        self.logps, self.told = nn.Parameter(torch.tensor(logps)), nn.Parameter(torch.tensor(scores))
        self.words = torch.tensor(logits or [[0.0]])

    def forward(self, batch: Batch, *, only_targets: bool = False) -> Output:
        read = batch.targets.slots if only_targets else None
        count = len(read) if read is not None else batch.tokens.numel()
        hidden = torch.arange(count)[:, None]
        return Output(hidden if only_targets else hidden.view(*batch.tokens.shape, 1), read)

    def target_logps(self, output: Output, targets: Any) -> Tensor:
        return self.logps

    def scores(self, hidden: Tensor) -> Tensor:
        return self.told

    def logits(self, hidden: Tensor) -> Tensor:
        return self.words


def learnt(small: Small, **known: list[float]) -> Batch:
    """An answer of as many tokens, with what was known of each when it was drawn."""
    batch = small.processor.batch([answered(Answer(2.0), words=3)])
    count = len(known["old"])
    targets = replace(
        batch.targets,
        **{name: getattr(batch.targets, name)[:count] for name in ("slots", "ids", "weights", "node")},
        known={name: torch.tensor(each) for name, each in known.items()},
    )
    return replace(batch, targets=targets)


RATIOS = [LN(1.5), LN(0.5), LN(1.1), LN(0.5), LN(1.5)]
"""log π − log π_old: two that left [0.8, 1.2] on either side, and one that did not."""
GAINS = [1.0, 1.0, 1.0, -1.0, -1.0]
EXPECTED = [-1.2, -0.5, -1.1, 0.8, 1.5]
"""max(−A ρ, −A clip(ρ)): clipped is what would gain by going on, never what would come back."""


def test_the_policys_loss_is_clipped_where_it_would_gain_by_going_on(plain: Small) -> None:
    model = Told(RATIOS, [0.0] * 5)
    loss, count, notes = policy(model, learnt(plain, old=[0.0] * 5, advantage=GAINS), Policy())  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(sum(EXPECTED), abs=1e-6)
    assert count == 5
    assert notes["clipped"].item() == 4
    loss.backward()
    # −A ρ where it counts, 0 where it was clipped.
    assert model.logps.grad is not None
    assert model.logps.grad.tolist() == pytest.approx([0.0, -0.5, -1.1, 0.0, 1.5], abs=1e-6)


def test_a_likelier_word_that_was_better_lowers_the_loss(plain: Small) -> None:
    """A step down the gradient makes what had an advantage likelier."""
    model = Told([0.0], [0.0])
    policy(model, learnt(plain, old=[0.0], advantage=[2.0]), Policy())[0].backward()  # type: ignore[arg-type]
    assert model.logps.grad is not None
    assert model.logps.grad.item() == pytest.approx(-2.0)


def test_kl_to_the_reference_is_paid_in_the_loss(plain: Small) -> None:
    """GRPO: k3 of log-ratios −0.2, 0 and 0.5 is 0.1279335 in all (section 5), 0.04 times."""
    batch = learnt(plain, old=[-0.2, 0.0, 0.5], reference=[0.0] * 3, advantage=[1.0] * 3)
    loss, _, notes = policy(Told([-0.2, 0.0, 0.5], [0.0] * 3), batch, Policy(kl=0.04))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(-3 + 0.04 * 0.1279335, abs=1e-6)
    assert notes["kl"].item() == pytest.approx(0.1279335, abs=1e-6)
    assert notes["drift"].item() == pytest.approx(0.3, abs=1e-6)


def test_values_learn_to_be_returns_no_faster_than_they_may(plain: Small) -> None:
    """½ max((V − R)², (V_old ± 0.2 − R)²), 0.1 times: ½ · 0.5², ½ · 0.8² for one that ran ahead, ½ · 1²."""
    batch = learnt(plain, old=[0.0] * 3, advantage=[0.0] * 3, value=[1.5, 0.0, 0.0], **{"return": [1.0, 1.0, 1.0]})
    model = Told([0.0] * 3, [1.5, 0.9, 0.0])
    loss, _, notes = policy(model, batch, Policy(value=0.1))  # type: ignore[arg-type]
    expected = 0.5 * (0.5**2 + 0.8**2 + 1.0)
    assert notes["value_loss"].item() == pytest.approx(expected, abs=1e-6)
    assert loss.item() == pytest.approx(0.1 * expected, abs=1e-6)


def test_what_could_be_said_otherwise_is_rewarded(plain: Small) -> None:
    """The entropy of ½, ½ is ln 2, that of ¼, ¾ is 0.5623351."""
    words = [[0.0, 0.0], [0.0, LN(3.0)]]
    batch = learnt(plain, old=[0.0] * 2, advantage=[0.0] * 2)
    loss, _, notes = policy(Told([0.0] * 2, [0.0] * 2, words), batch, Policy(entropy=0.01))  # type: ignore[arg-type]
    assert notes["entropy"].item() == pytest.approx(LN(2.0) + 0.5623351, abs=1e-6)
    assert loss.item() == pytest.approx(-0.01 * (LN(2.0) + 0.5623351), abs=1e-7)


def judged(small: Small, *margins: float) -> Batch:
    """Pairs: of each the second answer is the better one."""
    pairs = [(Answer(0.0, numbers={"margin": m}), Answer(1.0, numbers={"margin": m})) for m in margins]
    return small.processor.batch([answered(*pair) for pair in pairs])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # Section 5: r_w 1.2, r_l 0.5; and the other pair 0.3 against 0.4.
        (Reward(), 0.4031860 + 0.7443967),
        (Reward(centering=0.01), 0.4031860 + 0.7443967 + 0.01 * (1.7**2 + 0.7**2)),
        # The mean sum of the batch, 1.2, 0.001 times, for each pair.
        (Reward(centering=1e-3, center="mean"), 0.4031860 + 0.7443967 + 2 * 1e-3 * 1.2),
        # −log σ(0.7 − 0.5) and −log σ(−0.1 − 1).
        (Reward(margin=True), 0.5981389 + 1.3873353),
    ],
)
def test_a_reward_models_loss_is_that_of_the_better_answer(plain: Small, how: Reward, expected: float) -> None:
    model = Told([], [0.5, 1.2, 0.4, 0.3])
    loss, count, notes = reward(model, judged(plain, 0.5, 1.0), how)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert count == 2
    found = {name: value.item() for name, value in notes.items()}
    assert found == pytest.approx({"reward_won": 1.5, "reward_lost": 0.9, "margin": 0.6, "accuracy": 1.0}, abs=1e-6)


def test_section_5s_centered_reward_loss(plain: Small) -> None:
    """One pair, 1.2 over 0.5: 0.4048860 with LLaVA-RLHF's pull."""
    loss, _, _ = reward(Told([], [0.5, 1.2]), judged(plain, 0.0), Reward(centering=1e-3, center="mean"))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(0.4048860, abs=1e-6)


def test_a_reward_is_read_off_each_answers_last_token(plain: Small) -> None:
    """The columns that are asked for are those behind which nothing of the answer stands."""
    batch, asked = judged(plain, 0.0), list[Tensor]()
    model = Told([], [0.5, 1.2])
    model.scores = lambda hidden: asked.append(hidden) or model.told  # type: ignore[method-assign, assignment]
    reward(model, batch, Reward())  # type: ignore[arg-type]
    columns = asked[0][:, 0].tolist()
    assert batch.answers is not None
    for column, node in zip(columns, batch.answers.node.tolist(), strict=True):
        own = [c for c in range(batch.tokens.numel()) if int(batch.enter.flatten()[c]) == node]
        assert column == max(own, key=lambda c: int(batch.order.flatten()[c]))


# ---- gradients --------------------------------------------------------------------------------------------------
@pytest.fixture
def small() -> Small:
    """In float64, with a score head and adapters that have learnt something already, the values' own among them."""
    made = Small(llava15.recipe())
    made.model.with_score()
    lora.apply(made.model.llm, Lora(rank=2, alpha=4.0, beside=(VALUE,)))
    torch.manual_seed(3)
    for _, parameter in lora.lora_parameters(made.model.llm):
        parameter.data.normal_(std=0.2)
    made.model.double().train().requires_grad_(requires_grad=False)
    for name, parameter in made.model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))
    return made


@contextmanager
def moved(found: dict[str, nn.Parameter], way: dict[str, Tensor], by: float) -> Iterator[None]:
    """The weights a little further that way, inside."""
    with torch.no_grad():
        for name, p in found.items():
            p += by * way[name]
        yield
        for name, p in found.items():
            p -= by * way[name]


def differs(small: Small, loss: Callable[[], Tensor], *, step: float = 1e-5) -> tuple[float, float]:
    """The slope along a random direction in all that learns, by the gradient and by differences."""
    found = {name: p for name, p in small.model.named_parameters() if p.requires_grad}
    loss().backward()
    torch.manual_seed(0)
    way = {name: torch.randn_like(p) for name, p in found.items()}
    slope = sum(float((way[name] * p.grad).sum()) for name, p in found.items() if p.grad is not None)
    values = []
    for sign in (1, -1):
        with moved(found, way, sign * step):
            values.append(float(loss()))
    return slope, (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize(
    "how",
    [Reward(), Reward(margin=True, centering=0.01), Reward(centering=0.5, center="mean")],
    ids=["plain", "margin and square", "mean"],
)
def test_a_reward_models_gradient_is_what_its_loss_does_when_weights_move(small: Small, how: Reward) -> None:
    batch = judged(small, 0.3, 0.1)
    slope, measured = differs(small, lambda: reward(small.model, batch, how)[0])
    assert abs(slope) > 1e-3
    assert measured == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        Policy(),
        Policy(value=0.1),
        Policy(value=1.0, value_clip=100.0, clip=0.9),
        Policy(kl=0.04),
        Policy(kl=1.0, entropy=0.5),
    ],
    ids=["PPO", "PPO with values", "values alone far", "GRPO", "GRPO with entropy"],
)
def test_a_policys_gradient_is_what_its_loss_does_when_weights_move(small: Small, how: Policy) -> None:
    """Ratios between ⅔ and 1½, so some tokens are clipped and none stands on a corner."""
    batch = small.processor.batch([answered(Answer(1.0), Answer(0.0), words=2), answered(Answer(2.0), words=3)])
    with torch.no_grad():
        now = small.model.target_logps(small.model(batch, only_targets=True), batch.targets)
    draw = torch.Generator().manual_seed(1)
    told = {
        name: torch.randn(len(now), generator=draw, dtype=torch.float64) for name in ("advantage", "value", "return")
    }
    apart = (torch.rand(len(now), generator=draw, dtype=torch.float64) - 0.5) * 0.8
    told |= {"old": now - apart, "reference": now + torch.randn(len(now), generator=draw, dtype=torch.float64) / 2}
    batch = replace(batch, targets=replace(batch.targets, known=told))
    if how.value or not how.kl:
        assert int(((apart.exp() - 1).abs() > how.clip).sum()) > 0 or how.clip > 0.5
    slope, measured = differs(small, lambda: policy(small.model, batch, how)[0])
    assert abs(slope) > 1e-3
    assert measured == pytest.approx(slope, rel=1e-5)
    assert counted(batch) == len(now)
