"""Every term of the preference objective on a tiny model: its value from plain sums, its gradient by differences."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from quintet.answers import Answer
from quintet.components import lora
from quintet.components.lora import Lora
from quintet.data.contrast import KEPT, Contrast
from quintet.errors import ConfigError, DataError, TrainingError
from quintet.recipes import llava15
from quintet.training.loop import _empty
from quintet.training.objectives import pair_losses
from quintet.training.objectives.preference import FREE, Preference, Term, preference, reference_logps
from quintet.training.stage import Rate
from quintet.values import Batch, Node, Sample, Text, Turn
from systems import Small, says, shown, user

TERMS = {
    "sigmoid": Preference(),
    "cdpo": Preference(smoothing=0.1),
    "robust": Preference(terms={"robust": 1.0}, smoothing=0.1),
    "hinge": Preference(terms={"hinge": 1.0}, beta=0.01),
    "ipo": Preference(terms={"ipo": 1.0}),
    "bco": Preference(terms={"bco_pair": 1.0}, baseline=0.1),
    "kto": Preference(terms={"kto_pair": 1.0}),
    "orpo": Preference(terms={"nll": 1.0, "odds": 0.2}),
    "simpo": Preference(terms={"simpo": 1.0}, beta=2.0, margin=0.5),
    "mdpo": Preference(terms={"sigmoid": 1.0, "unseen": 1.0, "anchor": 1.0}),
    "severity": Preference(terms={"severity": 1.0}),
    "ddpo": Preference(beta=0.5, gamma=5.0, average=True),
    "mpo": Preference(terms={"sigmoid": 0.8, "bco_pair": 0.2, "nll": 1.0}),
    "stic": Preference(terms={"sigmoid": 1.0, "nll_sum": 1 / 1024}),
    "halva": Preference(terms={"phrases": 1.0, "kl": 0.4}),
    "povid": Preference(terms={"sigmoid": 0.5, "noisy": 0.5}),
    "povid's paper": Preference(terms={"noisy_joint": 1.0}),
}


@pytest.fixture
def small() -> Small:
    """With an adapter that has learnt something already."""
    made = Small(replace(llava15.recipe()))
    lora.apply(made.model.llm, Lora(rank=2, alpha=4.0))
    torch.manual_seed(3)
    for _, parameter in lora.lora_parameters(made.model.llm):
        parameter.data.normal_(std=0.2)
    made.model.train()
    return made


def batch(small: Small) -> Batch:
    """Two pairs of different lengths with marked phrases, severities, a second tree each, and an answer to be kept."""
    samples = [
        Sample(
            Node(
                (user(shown(n), "What is here?"),),
                (
                    Node((turn(f"A {'red ' * n}", "circle", "."),), answer=Answer(1.0)),
                    Node((turn("One ", "square", " is there."),), answer=Answer(0.0, numbers={"severity": 1.0 + n})),
                ),
            )
        )
        for n in (1, 2)
    ]
    samples = [Contrast(how="noise").draw(sample, seed=(0, n)) for n, sample in enumerate(samples)]
    samples.append(Sample(Node((user(shown(5), "How many?"), says("Three.")), answer=Answer(name=KEPT))))
    return small.processor.batch(samples)


def turn(before: str, phrase: str, after: str) -> Turn:
    return Turn("assistant", (Text(before), Text(phrase, mark="1"), Text(after)))


def tuned(small: Small) -> Mapping[str, Tensor]:
    found = dict(lora.lora_parameters(small.model.llm))
    small.model.requires_grad_(requires_grad=False)
    for parameter in found.values():
        parameter.requires_grad_(requires_grad=True)
    return found


@pytest.mark.parametrize("how", TERMS.values(), ids=TERMS)
def test_a_gradient_is_what_the_loss_does_when_a_weight_moves(
    how: Preference, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, along one random direction in all adapters. Hinge far from its corner; KTO's baselines are constants
    of the gradient, so while the weights move they are held."""
    small.model.double()
    asked = _doubled(batch(small))
    found = tuned(small)

    def loss() -> Tensor:
        return preference(small.model, asked, how)[0]

    loss().backward()
    if "hinge" in how.terms:
        assert 1.9 < loss().item() < 2.1, "two pairs, each near 1"
    if "kto_pair" in how.terms:
        monkeypatch.setattr(pair_losses, "kto_pair", held(small, asked, how))
    torch.manual_seed(0)
    way = {name: torch.randn_like(p) for name, p in found.items()}
    slope = sum(float((way[name] * p.grad).sum()) for name, p in found.items() if p.grad is not None)
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in found.items():
                p += sign * step * way[name]
            values.append(float(loss()))
            for name, p in found.items():
                p -= sign * step * way[name]
    measured = (values[0] - values[1]) / (2 * step)
    assert slope != 0
    assert measured == pytest.approx(slope, rel=1e-5)


def held(small: Small, asked: Batch, how: Preference) -> Callable[..., Tensor]:
    """KTO on pairs with the baselines of the weights as they are, by its formula."""
    sides: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_losses, "kto_pair", lambda won, lost, beta: sides.extend((won, lost)) or won)
        preference(small.model, asked, how)
    for_won, for_lost = (max(0.0, float(side.detach().mean())) for side in reversed(sides))
    assert for_won > 0 or for_lost > 0, "baselines that are 0 anyway prove nothing"
    return lambda won, lost, beta: 2 - torch.sigmoid(beta * (won - for_won)) - torch.sigmoid(beta * (for_lost - lost))


def _doubled(batch: Batch) -> Batch:
    weights = replace(batch.targets, weights=batch.targets.weights.double())
    return replace(batch, targets=weights)


def test_where_the_policy_is_the_reference_a_sigmoid_is_ln_2(small: Small) -> None:
    for _, parameter in lora.lora_parameters(small.model.llm):
        parameter.data.zero_()
    for name in ("sigmoid", "mdpo", "severity", "ddpo"):
        loss, count, notes = preference(small.model, batch(small), TERMS[name])
        terms = len(TERMS[name].terms)
        assert count == 2
        assert float(loss.detach()) == pytest.approx(2 * terms * 0.6931472, abs=1e-5), name
        assert float(notes["margin"]) == pytest.approx(0, abs=1e-5)


def test_the_reference_that_was_computed_before_gives_what_adapters_off_give(small: Small) -> None:
    asked = batch(small)
    with lora.disabled(small.model):
        known = reference_logps(small.model, asked)
    kept = replace(asked, targets=replace(asked.targets, known={"reference": known}))
    for how in (TERMS["sigmoid"], TERMS["mdpo"], TERMS["ddpo"]):
        live, stored = (float(preference(small.model, each, how)[0].detach()) for each in (asked, kept))
        assert stored == pytest.approx(live, abs=1e-6)


def test_a_frozen_encoder_looks_once_for_policy_and_reference(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights that train it looks twice, for its own may be what differs; the numbers are the same."""
    pairs, looks = batch(small), list[int]()
    encoder = small.model.encoders["image"]
    encoder.register_forward_hook(lambda *_: looks.append(1))
    found = []
    for frozen in (frozenset[str](), frozenset({"image"})):
        looks.clear()
        monkeypatch.setattr(small.model, "frozen_encoders", frozen)
        loss, _, _ = preference(small.model, pairs, TERMS["sigmoid"])
        found.append((len(looks), loss.item()))
    assert found == [(2, found[0][1]), (1, found[0][1])]


def test_experts_have_room_for_all_while_answers_are_compared() -> None:
    """The reference may have been computed before, in other batches: with room for a few it would be another model."""
    small = Small("moe_llava")
    moe = replace(small.model.config.fusion, capacity=0.25)
    for module in small.model.modules():
        if hasattr(module, "config") and type(module.config) is type(moe):
            module.config = moe
    small.model.eval()
    pairs = batch(small)
    before = reference_logps(small.model, pairs)
    small.model.train()
    assert not torch.equal(reference_logps(small.model, pairs), before), "elsewhere they are full"
    held = replace(pairs, targets=replace(pairs.targets, known={"reference": before}))
    assert preference(small.model, held, Preference())[0].item() == pytest.approx(2 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("name", ["llava15", "blip2"])
def test_nothing_is_dropped_while_answers_are_compared(name: str) -> None:
    """Policy and reference are one model at the first step, and ln 2 is exact; later steps have no noise either.

    Adapters drop inputs, OPT's class its activations.
    """
    small = Small(name)
    lora.apply(small.model.llm, Lora(rank=2, alpha=4.0, dropout=0.5))
    small.model.train()
    pairs = batch(small)
    for term in ("sigmoid", "unseen", "anchor", "severity"):
        loss = preference(small.model, pairs, Preference(terms={term: 1.0}))[0]
        assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    for _, parameter in lora.lora_parameters(small.model.llm):
        parameter.data.normal_(std=0.2)
    assert len({preference(small.model, pairs, Preference())[0].item() for _ in range(3)}) == 1
    assert small.model.training
    assert len({reference_logps(small.model, pairs).sum().item() for _ in range(3)}) == 3, "elsewhere they are"


# ---- trees of more than two answers ------------------------------------------------------------------------------
SAID = ((3.0, "Two dogs are here and a cat."), (5.0, "A red circle."), (1.0, "No."))
"""Three answers of different lengths, in a file's order."""


def tree(*answers: tuple[float, str]) -> Sample:
    return Sample(
        Node((user(shown(1), "What is here?"),), tuple(Node((says(w),), answer=Answer(s)) for s, w in answers))
    )


@pytest.mark.parametrize("how", ["crop", "noise"])
@pytest.mark.parametrize("terms", [("sigmoid", "unseen", "anchor"), ("noisy",), ("noisy_joint",)])
def test_a_tree_of_three_answers_costs_what_its_three_pairs_cost(
    how: Literal["crop", "noise"], terms: tuple[Term, ...], small: Small
) -> None:
    """Each winner is compared with its own words about the worse picture, the same one for all of a sample."""
    contrast = Contrast(how=how, area=(0.05, 0.05))
    settings = Preference(terms=dict.fromkeys(terms, 1.0))
    whole = preference(small.model, small.processor.batch([contrast.draw(tree(*SAID), seed=(0, 1))]), settings)
    pairs = [contrast.draw(tree(one, two), seed=(0, 1)) for one, two in itertools.combinations(SAID, 2)]
    apart = [preference(small.model, small.processor.batch([pair]), settings) for pair in pairs]
    assert whole[1] == 3
    assert whole[0].item() == pytest.approx(sum(each[0].item() for each in apart), abs=2e-5)
    for name, value in whole[2].items():
        assert value.item() == pytest.approx(sum(each[2][name].item() for each in apart), abs=2e-5), name


def test_a_rank_without_rows_runs_the_model_as_often_as_the_others(small: Small) -> None:
    """Or sharded weights that the others gather would wait for it: twice with adapters, once where numbers came."""
    forwards = list[int]()
    small.model.register_forward_hook(lambda *_: forwards.append(1))
    pad, asked = small.processor.tokenizer.pad_id, batch(small)
    kept = replace(asked.targets, known={"reference": torch.zeros_like(asked.targets.weights)})
    for known, full in (((), asked), (("reference",), replace(asked, targets=kept))):
        found = []
        for each in (full, _empty(pad, known=known)):
            forwards.clear()
            loss, count, _ = preference(small.model, each, TERMS["mdpo"])
            found.append(len(forwards))
        assert found[0] == found[1] == (1 if known else 2)
        assert (loss.item(), count) == (0.0, 0.0)


def test_without_adapters_or_numbers_there_is_no_reference_and_a_run_says_so(small: Small) -> None:
    lora.merge(small.model.llm)
    with pytest.raises(TrainingError, match="no reference model"):
        preference(small.model, batch(small), TERMS["sigmoid"])
    for name in ("orpo", "simpo"):
        assert set(TERMS[name].terms) <= set(FREE)
        assert preference(small.model, batch(small), TERMS[name])[1] == 2


def test_a_pair_of_which_a_term_knows_too_little_is_named(small: Small) -> None:
    plain = small.processor.batch(
        [
            Sample(
                Node(
                    (user(shown(1), "What is here?"),),
                    (
                        Node((says("A circle."),), answer=Answer(1.0)),
                        Node((says("A square."),), answer=Answer(0.0)),
                    ),
                )
            )
        ]
    )
    for term, fault in (("severity", "no-number"), ("unseen", "no-answer"), ("phrases", "no-phrases")):
        with pytest.raises(DataError) as caught:
            preference(small.model, plain, Preference(terms={term: 1.0}))  # type: ignore[dict-item]
        assert caught.value.fault == fault


def test_noise_on_the_picture_matters_to_what_it_is_compared_with(small: Small) -> None:
    """The words that are likeliest about the worse picture are asked of it, and scored about the real one."""
    samples = [
        Contrast(how="noise", step=step).draw(
            Sample(
                Node(
                    (user(shown(1), "What is here?"),),
                    (
                        Node((says("A red circle."),), answer=Answer(1.0)),
                        Node((says("A square."),), answer=Answer(0.0)),
                    ),
                )
            ),
            seed=(0, 1),
        )
        for step in (0, 900)
    ]
    how = Preference(terms={"noisy": 1.0})
    clean, noisy = (float(preference(small.model, small.processor.batch([s]), how)[0].detach()) for s in samples)
    assert clean != pytest.approx(noisy, abs=1e-4)


def test_a_stage_refuses_what_its_terms_cannot_work_with() -> None:
    stage = llava15.recipe().stages[1]
    with pytest.raises(ConfigError, match="needs it"):
        replace(stage, preference=Preference())
    with pytest.raises(ConfigError, match="set `contrast`"):
        replace(stage, objective="preference", preference=TERMS["mdpo"])
    with pytest.raises(ConfigError, match="lora that can be turned off"):
        replace(stage, objective="preference", preference=TERMS["halva"])
    rate = {"llm": Rate(lr=1e-5, lora=Lora(rank=4))}
    assert replace(stage, objective="preference", preference=TERMS["halva"], train=rate).adapts
    with pytest.raises(ConfigError, match="no term 'sigmoids'"):
        Preference(terms={"sigmoids": 1.0})  # type: ignore[dict-item]
