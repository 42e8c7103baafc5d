"""What sets the systems that speak of regions apart: Shikra's numerals, ChatSpot's outlines, Ferret's sampler."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quintet.components.connectors import region as region_part
from quintet.components.connectors.region import RegionSampler, points_in
from quintet.data.processor import Processor
from quintet.errors import ConfigError, DataError
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.recipes._scale import at_scale
from quintet.values import Features, Layout, Node, Region, Sample, Text, Turn
from systems import enlarge, shown

BOX = Region("box", (0.125, 0.25, 0.5, 0.75))
OTHER = Region("box", (0.5, 0.5, 1.0, 1.0))
OUTLINE = Region("mask", (0.125, 0.25, 0.5, 0.25, 0.5, 0.75, 0.25, 0.875))


def processor(name: str) -> Processor:
    recipe = at_scale(load_recipe(name)[1], "tiny")
    return Processor(load_tokenizer(recipe.model, added=recipe.added_tokens), recipe.template, recipe.model)


def asked(region: Region, *, answer: tuple[Text | Region, ...] = (), height: int = 40, width: int = 40) -> Sample:
    turns = (Turn("user", (shown(1, height=height, width=width), Text("What is in "), region, Text("?"))),)
    return Sample(Node((*turns, Turn("assistant", answer)) if answer else turns))


def answers(name: str, *samples: Sample) -> list[Tensor]:
    """Logits of the first token of each answer, float[V]; the weights are larger than initial ones, so all is seen."""
    spelt = processor(name)
    model = build_model(spelt.model, vocab=spelt.tokenizer.vocab, added=[]).eval()
    enlarge(model)
    made = []
    for sample in samples:
        with model.inference():
            made.append(model.logits(model(spelt.batch([sample], open=True)).hidden)[0, -1])
    return made


# ---- Shikra --------------------------------------------------------------------------------------------------------
def test_shikras_coordinates_are_the_llms_own_text_in_questions_and_answers() -> None:
    """The same ids as plain words of the same letters; a table of regions or tokens for them would give others."""
    spelt = processor("shikra")
    words = Text("[0.125,0.250,0.500,0.750]")
    region = spelt.tokens(asked(BOX, answer=(Text("At "), BOX)))
    plain = asked(BOX, answer=(Text("At "), words))
    user = replace(plain.root.turns[0], parts=(*plain.root.turns[0].parts[:2], words, Text("?")))
    text = spelt.tokens(replace(plain, root=Node((user, plain.root.turns[1]))))
    assert torch.equal(region.ids, text.ids)
    assert torch.equal(region.weight, text.weight)
    assert spelt.template.regions.added_tokens == ()


@pytest.mark.parametrize(("height", "width", "text"), [(40, 40, "0.250,0.500,0.750"), (20, 40, "0.375,0.500,0.625")])
def test_shikra_counts_on_the_padded_square_there_and_back(height: int, width: int, text: str) -> None:
    spelt, prompt = processor("shikra"), asked(BOX, height=height, width=width)
    ids = spelt.tokens(prompt, open=True).ids.tolist()
    assert f"in [0.125,{text}]?" in spelt.tokenizer.decode(ids)
    assert spelt.regions(prompt, f"It is [0.125,{text}].") == [BOX]


def test_shikras_picture_stands_between_its_added_tokens() -> None:
    spelt = processor("shikra")
    made = spelt.tokens(asked(BOX), open=True)
    [item] = made.items
    around = made.ids[[item.start - 1, item.start + item.columns]].tolist()
    assert around == [spelt.tokenizer.id("<im_start>"), spelt.tokenizer.id("<im_end>")]


# ---- ChatSpot ------------------------------------------------------------------------------------------------------
def test_chatspot_can_answer_one_question_differently_for_every_region() -> None:
    """Box, another box, an outline and a point: four answers' logits, all apart."""
    found = answers("chatspot", *map(asked, (BOX, OTHER, OUTLINE, Region("points", (0.25, 0.5)))))
    for i, one in enumerate(found):
        for two in found[:i]:
            assert float((one - two).abs().max()) > 0.1


def test_chatspots_region_is_a_list_of_any_length_between_its_tokens() -> None:
    spelt = processor("chatspot")
    tokens = [spelt.tokenizer.id(token) for token in ("<box>", "</box>")]
    for region in (BOX, OUTLINE, Region("points", (0.25, 0.5)), Region("points", (0.25, 0.5, 0.375, 0.5, 0.5, 0.625))):
        ids = spelt.tokens(asked(region), open=True).ids.tolist()
        start, stop = map(ids.index, tokens)
        numbers = spelt.tokenizer.decode(ids[start + 1 : stop]).replace(" ", "")
        assert numbers == ",".join(f"{value:.3f}" for value in region.points)


def test_chatspot_has_no_region_encoder() -> None:
    with torch.device("meta"):
        assert list(load_recipe("chatspot")[1].build().parts()) == ["encoders.image", "connectors.image", "llm"]


# ---- Ferret --------------------------------------------------------------------------------------------------------
SCRIBBLE = Region("points", (0.125, 0.125, 0.5, 0.25, 0.625, 0.75))
FORMS = {"point": Region("points", (0.25, 0.5)), "box": BOX, "scribble": SCRIBBLE, "mask": OUTLINE}


@pytest.mark.parametrize("form", FORMS)
def test_points_lie_in_their_region_and_are_always_the_same(form: str) -> None:
    region = FORMS[form]
    points = points_in(region, 200)
    assert points.shape == (200, 2)
    assert torch.equal(points, points_in(region, 200))
    left, top, right, bottom = region.bounds
    reach = 5 / 336 + 1e-6 if region.kind == "points" else 1e-6
    assert bool((points >= torch.tensor((left, top)) - reach).all())
    assert bool((points <= torch.tensor((right, bottom)) + reach).all())
    assert len(points.unique(dim=0)) > 150


def test_points_of_a_mask_follow_its_outline_and_not_its_box() -> None:
    """A right triangle is half of its box: the points on the other side of the diagonal are missing."""
    points = points_in(Region("mask", (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)), 500)
    assert bool((points.sum(1) <= 1).all())
    assert points.mean(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.02)


def test_an_outline_without_an_inside_gives_points_on_it() -> None:
    points = points_in(Region("mask", (0.25, 0.5, 0.75, 0.5)), 8)
    assert bool((points[:, 1] == 0.5).all())
    assert points[:, 0].tolist() == pytest.approx(torch.linspace(0.25, 0.75, 8).tolist())


def test_a_sampler_reads_the_grid_between_its_features() -> None:
    """Features that are their own place: what is read at a point is the point, but for the border's half patch."""
    rows, cols = 6, 8
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols, indexing="ij")
    grid = torch.stack((x, y), dim=-1).flatten(0, 1)
    at = torch.tensor([[0.25, 0.5], [0.5, 0.125], [0.7, 0.9]])
    with_class = torch.cat((torch.full((1, 2), 9.0), grid))
    torch.testing.assert_close(region_part._between(with_class, (rows, cols), 1, at), at, atol=1e-5, rtol=0)


def test_farthest_points_are_the_corners_and_then_the_middle() -> None:
    """Five points by hand: from the first corner the opposite one, then the two others, then what is left."""
    places = torch.tensor([[[0.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.0, 0.9], [1.0, 1.0]]])
    assert region_part._far_apart(places, 5).tolist() == [[0, 4, 2, 3, 1]]
    assert sorted(region_part._nearest(places, places[:, :1], 3)[0, 0].tolist()) == [0, 1, 3]


@pytest.fixture(scope="module")
def sampler() -> RegionSampler:
    torch.manual_seed(0)
    return RegionSampler.Config().tiny().build(d_in=6, d_out=5)


def test_a_region_has_one_feature_whatever_stands_beside_it(sampler: RegionSampler) -> None:
    """Two pictures of different grids, regions of all forms: alone, together and in another order."""
    features = Features(torch.randn(12 + 21, 6), (Layout((3, 4)), Layout((4, 5), extra=1)))
    regions, items = list(FORMS.values()), [0, 1, 1, 0]
    together = sampler(features, regions, items)
    assert together.shape == (4, 5)
    for i, (region, item) in enumerate(zip(regions, items, strict=True)):
        torch.testing.assert_close(sampler(features, [region], [item])[0], together[i], atol=1e-6, rtol=0)
    torch.testing.assert_close(sampler(features, regions[::-1], items[::-1]), together.flip(0), atol=1e-6, rtol=0)


def test_a_feature_depends_on_what_is_inside_and_not_on_what_is_far_outside(sampler: RegionSampler) -> None:
    """A 16 × 16 grid; the region is the upper left quarter."""
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[:9, :9] = True
    values, layouts = torch.randn(256, 6), (Layout((16, 16)),)
    region = Region("mask", (0.0, 0.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.5))
    was = sampler(Features(values, layouts), [region], [0])
    away = values + ~inside.flatten()[:, None] * 3.0
    assert torch.equal(sampler(Features(away, layouts), [region], [0]), was)
    here = values + inside.flatten()[:, None] * torch.randn(256, 6)
    assert float((sampler(Features(here, layouts), [region], [0]) - was).detach().abs().max()) > 1e-3


def test_ferret_spells_both_coordinates_and_a_feature_for_the_user_and_coordinates_alone_in_answers() -> None:
    spelt = processor("ferret")
    made = spelt.tokens(asked(BOX, answer=(Text("At "), OTHER)))
    token = spelt.tokenizer.id("<region_fea>")
    [spot] = made.spots
    assert (spot.region, spot.item) == (BOX, 0)
    assert made.ids.tolist().count(token) == 1
    assert int(made.ids[spot.column]) == token
    assert float(made.weight[spot.column]) == 0
    text = spelt.tokenizer.decode(made.ids.tolist())
    assert "in [125, 250, 500, 750]" in text
    assert "At [500, 500, 1000, 1000]" in text
    assert spelt.regions(asked(BOX), "[500, 500, 1000, 1000]") == [OTHER]


def test_ferrets_feature_tells_apart_what_its_coordinates_do_not() -> None:
    """A mask and its bounding box are spelt alike; only the feature differs. Without the sampler this fails."""
    around = Region("box", OUTLINE.bounds)
    spelt = processor("ferret")
    ids = [spelt.tokens(asked(region), open=True).ids for region in (OUTLINE, around)]
    assert torch.equal(*ids)
    one, two = answers("ferret", asked(OUTLINE), asked(around))
    assert float((one - two).abs().max()) > 0.05


def test_a_region_before_its_picture_is_refused() -> None:
    spelt = processor("ferret")
    spelt = replace(spelt, template=replace(spelt.template, place="written"))
    shown, text, region, rest = asked(BOX).root.turns[0].parts
    with pytest.raises(DataError, match="stands before it; show the picture first"):
        spelt.tokens(Sample(Node((Turn("user", (text, region, rest, shown)),))), open=True)


def test_a_pointer_must_be_a_token_and_regions_need_the_whole_picture() -> None:
    recipe = load_recipe("ferret")[1]
    with pytest.raises(ConfigError, match="is not one of the added tokens"):
        replace(recipe.template, pointer=" <else>")
    padded = {"image": recipe.model.encoders["image"].at(layer=-2, select="patch", fit="pad")}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="its fit is 'pad'; use 'squash'"):
        replace(recipe.model, encoders=padded)
