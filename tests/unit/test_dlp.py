"""DLP: prompts from text alone, and a connector that is drawn to them. Seconds.

Tolerance: float32, the same sums in another order; losses up to 400: relative 1e-5.
"""

import io
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import picture
from quintet.components.fusion.pformer import PFormer
from quintet.components.fusion.token import TokenFusion
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives import OBJECTIVES
from quintet.training.objectives.prompts import prompts
from quintet.training.optim import set_trainable
from quintet.values import Batch, Media, Node, Origin, Ref, Sample, Text, Turn

TARGETS = ("slots", "ids", "weights", "node")
CAPTIONS = ("A large red circle.", "Two small squares and a word.", "stop", "Nothing at all, on a green table.")


@cache
def tiny() -> tuple[Recipe, MLLM, Processor]:
    recipe = at_scale(load_recipe("dlp")[1], "tiny")
    tokenizer = load_tokenizer(recipe.model)
    model = build_model(recipe.model, vocab=tokenizer.vocab, seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return recipe, model, Processor(tokenizer, recipe.template, recipe.model)


def fusion(model: MLLM) -> PFormer:
    assert isinstance(model.fusion, PFormer)
    return model.fusion


def caption(text: str, *, number: int | None = None) -> Sample:
    file = io.BytesIO()
    picture(number or 0).save(file, "PNG")
    shown = () if number is None else (Media("image", Ref("0.png", data=file.getvalue())),)
    said = Turn("assistant", (Text(text),))
    return Sample(Node((Turn("user", (*shown, Text("Describe."))), said)), Origin("memory", 1))


def batch(template: Template, *samples: Sample) -> Batch:
    """All samples in one row."""
    _, _, processor = tiny()
    made = [replace(processor, template=template).tokens(s) for s in samples]
    items = [item for tokens in made for item in tokens.items]
    media = {n: Loaded(load_image(i.ref, processor.spec("image"))) for n, i in enumerate(items)}
    return collate([made], media, pad=processor.tokenizer.pad_id)


def learnt(of: Batch) -> list[Tensor]:
    return [of.targets.ids[of.targets.node == node] for node in of.targets.node.unique()]


# ---- the P-Former learns from text alone -------------------------------------------------------------------------
def test_the_first_stage_sees_no_picture() -> None:
    recipe, model, _ = tiny()
    stage = recipe.stages[0]
    found = []
    for pictures in ((None,) * 4, (0, 1, 2, 3), (4, 5, 6, 7)):
        samples = [caption(text, number=n) for text, n in zip(CAPTIONS, pictures, strict=True)]
        set_trainable(model, stage.train)
        model.zero_grad()
        loss, count, _ = OBJECTIVES[stage.objective](model, made := batch(stage.template, *samples))
        assert count == made.targets.count
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert set(found[0][1]) == {n for n, _ in model.named_parameters() if n.startswith("fusion.")}
    # Neither whether pictures are there, nor which, moves the loss or a gradient by a bit, with one start token.
    for loss, gradients in found[2:]:
        assert torch.equal(loss, found[1][0])
        assert all(torch.equal(g, gradients[n]) for n, g in found[1][1].items())
    torch.testing.assert_close(found[0][0], found[1][0], atol=0, rtol=1e-5)


def test_the_three_losses_are_what_they_say() -> None:
    _, model, _ = tiny()
    pformer = fusion(model)
    made = batch(tiny()[0].stages[0].template, *map(caption, CAPTIONS))
    start = made.tokens[0, 0]
    with torch.no_grad():
        loss, count, notes = prompts(model, made)
        plain = prompts(model, made, {"contrast": 0.0, "commitment": 2.0})[0]
        cls = [pformer.read([ids])[0] for ids in learnt(made)]
        of = pformer.prompts(torch.stack(cls))
        lm = torch.zeros(())
        for prompt, ids in zip(of, learnt(made), strict=True):
            words = torch.cat([start[None], ids])
            embeds = torch.cat([prompt, model.llm.embed(words)])[None]
            logits = model.llm.head(model.llm.model.base_model(inputs_embeds=embeds).last_hidden_state)[0]
            lm += F.cross_entropy(logits[len(prompt) : -1], ids, reduction="sum")
        table = model.llm.tables()[0]
        nearest = torch.stack([table[((p[:, None] - table) ** 2).sum(-1).argmin(1)] for p in of])
        commitment = ((of - nearest) ** 2).mean()
        said = F.normalize(pformer.contrast(torch.stack(cls)), dim=-1)
        logp = (said @ said.T / pformer.log_temperature.exp()).log_softmax(-1)
        contrast = -(0.9 * logp.diagonal().mean() + 0.1 * logp.mean())
    torch.testing.assert_close(notes["contrast"] / count, contrast, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(notes["commitment"] / count, commitment, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, lm + count * (contrast + commitment), atol=0, rtol=1e-5)
    torch.testing.assert_close(plain, lm + count * 2 * commitment, atol=0, rtol=1e-5)


def test_no_gradient_goes_into_the_nearest_rows() -> None:
    _, model, _ = tiny()
    model.requires_grad_(True)
    made = batch(tiny()[0].stages[0].template, *map(caption, CAPTIONS))
    table = model.llm.tables()[0]
    with_it, without = (
        torch.autograd.grad(prompts(model, made, {"commitment": times})[0], table)[0] for times in (1.0, 0.0)
    )
    torch.testing.assert_close(with_it, without, atol=1e-4, rtol=0)


def test_it_learns_prompts_that_are_their_sentences_own() -> None:
    recipe = tiny()[0]
    tokenizer = load_tokenizer(recipe.model)
    model = build_model(recipe.model, vocab=tokenizer.vocab, seed=3)
    with torch.no_grad():
        for parameter in model.llm.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    set_trainable(model, recipe.stages[0].train)
    optimizer = torch.optim.AdamW(fusion(model).parameters(), lr=3e-3)
    made = batch(recipe.stages[0].template, *map(caption, CAPTIONS))
    torch.manual_seed(0)
    for _ in range(60):
        loss = prompts(model, made)[0] / made.targets.count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pformer = fusion(model.eval())
    ids = learnt(made)
    with torch.no_grad():
        of = pformer.prompts(pformer.read(ids))
        start = made.tokens[0, :1]

        def says(prompt: Tensor, words: Tensor) -> float:
            embeds = torch.cat([prompt, model.llm.embed(torch.cat([start, words]))])[None]
            logits = model.llm.head(model.llm.model.base_model(inputs_embeds=embeds).last_hidden_state)[0]
            return float(F.cross_entropy(logits[len(prompt) : -1], words))

        losses = torch.tensor([[says(prompt, words) for prompt in of] for words in ids])
    assert bool((losses.argmin(1) == torch.arange(len(ids))).all()), losses


def test_words_are_hidden_in_training_alone() -> None:
    _, model, _ = tiny()
    pformer = fusion(model)
    ids = learnt(batch(tiny()[0].stages[0].template, *map(caption, CAPTIONS)))
    with torch.no_grad():
        assert torch.equal(pformer.read(ids), pformer.read(ids))
        torch.manual_seed(0)
        some = pformer.read(ids, hidden=0.25)
        assert not torch.allclose(some, pformer.read(ids), atol=1e-3)
        every = pformer.read([ids[0], ids[0].flip(0)], hidden=1.0)
    assert torch.equal(every[0], every[1]), "of words that are all hidden only the number is known"


def test_a_sentence_is_read_the_same_beside_longer_ones_and_only_as_far_as_there_are_positions() -> None:
    _, model, _ = tiny()
    pformer = fusion(model)
    ids = learnt(batch(tiny()[0].stages[0].template, *map(caption, CAPTIONS)))
    with torch.no_grad():
        together = pformer.read(ids)
        for one, words in zip(together, ids, strict=True):
            torch.testing.assert_close(one, pformer.read([words])[0], atol=1e-5, rtol=0)
        long = torch.arange(pformer.config.positions + 9) % 100
        assert torch.equal(pformer.read([long]), pformer.read([long[: pformer.config.positions]]))


# ---- the connector is drawn to the prompts -----------------------------------------------------------------------
def test_alignment_is_the_distance_of_a_pictures_queries_from_its_own_captions_prompts() -> None:
    recipe, model, _ = tiny()
    stage = recipe.stages[-1]
    pformer = fusion(model)
    made = batch(stage.template, *(caption(text, number=n) for n, text in enumerate(CAPTIONS)))
    with torch.no_grad():
        features = model.connectors["image"](model.encode("image", made)).split()
        wanted = [pformer.prompts(pformer.read([ids]))[0] for ids in learnt(made)]
        distance = torch.stack([((a - b) ** 2).mean() for a, b in zip(features, wanted, strict=True)]).mean()
        bare, count, notes = OBJECTIVES["lm"](model, made)
        whole = OBJECTIVES["lm"](model, made, stage.extra)[0]
    torch.testing.assert_close(notes["alignment"] / count, distance, atol=1e-6, rtol=1e-5)
    assert stage.extra == {"alignment": 100.0}
    torch.testing.assert_close(whole - bare, 100 * count * distance, atol=0, rtol=1e-4)


def test_the_distance_pulls_the_connector_and_never_the_p_former() -> None:
    recipe, model, _ = tiny()
    stage = recipe.stages[-1]
    made = batch(stage.template, caption(CAPTIONS[0], number=1))
    pulls: list[dict[str, Tensor]] = []
    for extra in ({}, stage.extra):
        model.requires_grad_(True)
        model.zero_grad()
        OBJECTIVES["lm"](model, made, extra)[0].backward()
        pulls.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert not [n for pull in pulls for n in pull if n.startswith("fusion.")]
    moved = {n for n in pulls[0] if not torch.allclose(pulls[0][n], pulls[1][n], atol=1e-4)}
    assert moved
    assert all(n.startswith(("connectors.image.", "encoders.image.")) for n in moved)


def test_what_the_llm_reads_is_token_fusions_with_it_or_without() -> None:
    _, model, processor = tiny()
    made = batch(processor.template, caption(CAPTIONS[0], number=1))
    with model.inference():
        features = {"image": model.connectors["image"](model.encode("image", made))}
        embeds = model.llm.embed(made.tokens)
        assert torch.equal(model.fusion.inputs(embeds, features, made), TokenFusion().inputs(embeds, features, made))
        read: list[Any] = []
        hook = fusion(model).layers[0].register_forward_hook(lambda *_: read.append(1))
        model(made)
        hook.remove()
    assert not read, "the P-Former runs where nothing is trained"


def test_a_batch_without_pictures_has_no_distance() -> None:
    recipe, model, _ = tiny()
    stage = recipe.stages[-1]
    made = batch(stage.template, caption("Four.", number=None), caption("Five.", number=None))
    with torch.no_grad():
        bare, whole = (OBJECTIVES["lm"](model, made, extra)[0] for extra in ({}, stage.extra))
    assert torch.equal(bare, whole)


def test_what_does_not_fit_is_refused() -> None:
    recipe, model, _ = tiny()
    made = batch(recipe.stages[0].template, caption("Four."))
    with pytest.raises(ConfigError, match=r"no loss 'itc'; it has contrast, commitment"):
        prompts(model, made, {"itc": 1.0})
    other = at_scale(load_recipe("blip2")[1], "tiny").model.build(vocab=2138)
    with pytest.raises(ConfigError, match="teaches a P-Former"):
        prompts(other, made)
    wrong = replace(recipe.model, fusion=PFormer.Config(prompts=3).tiny()).build(vocab=2138)
    shown = batch(recipe.stages[-1].template, caption("Four.", number=1))
    with pytest.raises(ConfigError, match="predicts 3 prompts, the connector gives 4"):
        OBJECTIVES["lm"](wrong, shown)
    with pytest.raises(ConfigError, match="a multiple of heads"):
        PFormer.Config(heads=7)


def test_templates_and_stages_are_the_papers() -> None:
    recipe, _, processor = tiny()
    full = load_recipe("dlp")[1]
    spelt = replace(processor, template=recipe.stages[0].template).tokens(caption("A circle."))
    assert processor.tokenizer.decode(spelt.ids.tolist(), keep_special=True) == "</s>A circle.\n"
    shown = replace(processor, template=recipe.stages[-1].template).tokens(caption("A circle.", number=1))
    assert shown.items[0].columns == 4
    assert processor.tokenizer.decode(shown.ids[4:].tolist(), keep_special=True) == "</s>A circle.\n"
    text, align, generative = full.stages
    assert (text.objective, sorted(text.train)) == ("prompts", ["fusion"])
    assert (align.objective, sorted(align.train), align.extra) == ("align", ["connectors"], {"alignment": 10.0})
    both = ["connectors.image.project", "connectors.image.qformer"]
    assert (generative.objective, sorted(generative.train), generative.extra) == ("lm", both, {"alignment": 100.0})


def test_beside_itc_itm_and_itg_the_distance_counts_ten_times() -> None:
    recipe, model, _ = tiny()
    stage = recipe.stages[1]
    pformer = fusion(model)
    made = batch(stage.template, *(caption(text, number=n) for n, text in enumerate(CAPTIONS)))
    with torch.no_grad():
        features = model.connectors["image"](model.encode("image", made)).split()
        wanted = [pformer.prompts(pformer.read([ids]))[0] for ids in learnt(made)]
        distance = torch.stack([((a - b) ** 2).mean() for a, b in zip(features, wanted, strict=True)]).mean()
        found = []
        for extra in ({}, stage.extra):
            torch.manual_seed(0)
            found.append(OBJECTIVES["align"](model, made, extra))
    (bare, count, _), (whole, _, notes) = found
    torch.testing.assert_close(notes["alignment"] / count, distance, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole - bare, 10 * count * distance, atol=0, rtol=1e-4)
    with pytest.raises(ConfigError, match="no loss 'balance'; it has itc, itm, itg, alignment"):
        OBJECTIVES["align"](model, made, {"balance": 1.0})


def test_where_nothing_is_learnt_all_parts_run_for_nothing() -> None:
    """Sharded layers are gathered by all ranks together; one that has no sentence must not be missing."""
    recipe, model, _ = tiny()
    made = batch(recipe.stages[0].template, caption("Four."))
    none = replace(made, targets=replace(made.targets, **{f: getattr(made.targets, f)[:0] for f in TARGETS}))
    for stage, weight in ((recipe.stages[0], "fusion."), (recipe.stages[2], "")):
        model.requires_grad_(True)
        model.zero_grad()
        read: list[Any] = []
        hook = fusion(model).layers[0].register_forward_hook(lambda *_, read=read: read.append(1))
        loss, count, _ = OBJECTIVES[stage.objective](model, none, stage.extra)
        hook.remove()
        loss.backward()
        assert (float(loss.detach()), count) == (0.0, 0.0)
        assert len(read) == 1
        found = [p.grad for n, p in model.named_parameters() if n.startswith(weight) and p.grad is not None]
        assert found
        assert not any(bool(g.any()) for g in found)
