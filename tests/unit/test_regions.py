"""Regions in and out of every spelling, and through templates: to the stated precision, and never an exception."""

import io
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import byte_tokenizer, picture
from quintet.data.regions import Bins, Numbers, RegionFormat
from quintet.data.scenes import World, sample_scene
from quintet.data.template import DECIMALS, Frame, Template
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError, DataError
from quintet.evaluation.metrics.boxes import iou
from quintet.recipes._templates import COGVLM_CHAT, COGVLM_PLAIN, COGVLM_VQA, FUYU, MINIGPT_V2, VICUNA_V1
from quintet.recipes._templates_query import KOSMOS2_CHAT, QWEN_VL
from quintet.recipes._templates_regions import (
    CHATSPOT,
    CHATSPOT_REGIONS,
    COGVLM_REGIONS,
    FERRET_REGIONS,
    FUYU_REGIONS,
    KOSMOS2_REGIONS,
    MINIGPT_V2_REGIONS,
    PALI_X_REGIONS,
    QWEN_VL_REGIONS,
    SHIKRA,
    SHIKRA_REGIONS,
)
from quintet.values import Media, Node, Part, Ref, Region, Sample, Text, Turn

FORMATS: dict[str, tuple[RegionFormat, float]] = {
    "decimals": (DECIMALS, 0.005),
    "llava15": (VICUNA_V1.regions, 0.005),
    "shikra": (SHIKRA_REGIONS, 0.0005),
    "chatspot": (CHATSPOT_REGIONS, 0.0005),
    "minigpt_v2": (MINIGPT_V2_REGIONS, 0.01),
    "qwen_vl": (QWEN_VL_REGIONS, 0.001),
    "kosmos2": (KOSMOS2_REGIONS, 1 / 32),
    "cogvlm": (COGVLM_REGIONS, 0.001),
    "ferret": (FERRET_REGIONS, 0.001),
    "pali_x": (PALI_X_REGIONS, 0.001),
    "fuyu": (FUYU_REGIONS, 0.001),
}
"""Format → the most that a number moves there and back, in shares of the frame's side; that of pixels is 1000."""

SIZE = (1000, 1000)

CASES = [pytest.param(form, step, id=name) for name, (form, step) in FORMATS.items()]
SIDES = st.integers(20, 400)


@st.composite
def boxes(draw: st.DrawFn) -> Region:
    """At least an eighth wide and high, so that no format rounds it to nothing."""
    left, top = draw(st.floats(0, 0.875)), draw(st.floats(0, 0.875))
    right, bottom = draw(st.floats(left + 0.125, 1)), draw(st.floats(top + 0.125, 1))
    return Region("box", (left, top, right, bottom))


BOX = Region("box", (0.125, 0.25, 0.5, 0.75))
POINT = Region("points", (0.25, 0.5))


# ---- formats -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("form", "text"),
    [
        (DECIMALS, "[0.12, 0.25, 0.50, 0.75]"),
        (SHIKRA_REGIONS, "[0.125,0.250,0.500,0.750]"),
        (CHATSPOT_REGIONS, "<box>0.125,0.250,0.500,0.750</box>"),
        (MINIGPT_V2_REGIONS, "{<12><25><50><75>}"),
        (QWEN_VL_REGIONS, "<box>(125,250),(500,750)</box>"),
        (KOSMOS2_REGIONS, "<object><patch_index_0260><patch_index_0751></object>"),
        (COGVLM_REGIONS, "[[125,250,500,750]]"),
        (FERRET_REGIONS, "[125, 250, 500, 750]"),
        (PALI_X_REGIONS, "250 125 750 500"),
        (FUYU_REGIONS, "<0x00>125, 62, 375, 250<0x01>"),
    ],
)
def test_a_box_is_spelt_as_published(form: RegionFormat, text: str) -> None:
    """Kosmos-2: column 4 and row 8 of 32 are bin 260; the lower right ends in column 15 and row 23, bin 751."""
    assert form.format([BOX], size=SIZE) == text


SEVERAL = {
    "decimals": "[0.12, 0.25, 0.50, 0.75], [0.00, 0.00, 1.00, 1.00]",
    "llava15": "[0.12, 0.25, 0.50, 0.75], [0.00, 0.00, 1.00, 1.00]",
    "shikra": "[0.125,0.250,0.500,0.750;0.000,0.000,1.000,1.000]",
    "chatspot": "<box>0.125,0.250,0.500,0.750</box><box>0.000,0.000,1.000,1.000</box>",
    "minigpt_v2": "{<12><25><50><75>}<delim>{<0><0><100><100>}",
    "qwen_vl": "<box>(125,250),(500,750)</box><box>(0,0),(999,999)</box>",
    "kosmos2": "<object><patch_index_0260><patch_index_0751></delimiter_of_multi_objects/>"
    "<patch_index_0000><patch_index_1023></object>",
    "cogvlm": "[[125,250,500,750;000,000,999,999]]",
    "ferret": "[125, 250, 500, 750], [0, 0, 1000, 1000]",
    "pali_x": "250 125 750 500 and 0 0 999 999",
    "fuyu": "<0x00>125, 62, 375, 250<0x01><0x00>0, 0, 500, 500<0x01>",
}


@pytest.mark.parametrize("name", FORMATS)
def test_several_places_of_one_phrase_stand_together(name: str) -> None:
    form, step = FORMATS[name]
    both = [BOX, Region("box", (0.0, 0.0, 1.0, 1.0))]
    assert form.format(both, size=SIZE) == SEVERAL[name]
    back = form.parse(f"two: {SEVERAL[name]}.", size=SIZE)
    assert [region.kind for region in back] == ["box", "box"]
    for mine, own in zip(back, both, strict=True):
        assert mine.points == pytest.approx(own.points, abs=step + 1e-9)


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_in_running_text_are_no_places(name: str) -> None:
    assert FORMATS[name][0].parse("There are 3 4 in 1998, and 12 more: 0.5, 0.25.") == []


@pytest.mark.parametrize(("form", "step"), CASES)
@settings(deadline=None, max_examples=60)
@given(region=boxes(), height=SIDES, width=SIDES, before=st.text(max_size=5), after=st.text(max_size=5))
def test_a_box_comes_back_to_the_formats_precision(
    form: RegionFormat, step: float, region: Region, height: int, width: int, before: str, after: str
) -> None:
    """On a padded square one step of the square is more of the short side; text around it does not disturb."""
    size = (height, width)
    text = form.format([region], size=size)
    longest = max(size) if form.frame == "square" else 1
    bound = [step * longest / (side if form.frame == "square" else 1) + 1e-9 for side in (width, height) * 2]
    if form.frame == "pixels":
        bound = [1 / side + 1e-9 for side in (width, height) * 2]
    if any(high - low <= 2 * b for low, high, b in zip(region.points[:2], region.points[2:], bound, strict=False)):
        return  # a sliver of a very long picture may round to no area
    around = f"{re.sub('[0-9]', '', before)} {text} {re.sub('[0-9]', '', after)}"
    [back] = form.parse(around, size=size)
    assert back.kind == "box"
    for mine, own, most in zip(back.points, region.points, bound, strict=True):
        assert abs(mine - own) <= most


@pytest.mark.parametrize(("form", "step"), CASES)
@settings(deadline=None, max_examples=60)
@given(region=boxes())
def test_what_is_written_reads_and_writes_the_same(form: RegionFormat, step: float, region: Region) -> None:
    text = form.format([region], size=SIZE)
    assert form.format(form.parse(text, size=SIZE), size=SIZE) == text


@pytest.mark.parametrize(("form", "step"), [c for c in CASES if c.id not in ("kosmos2", "pali_x")])
@settings(deadline=None, max_examples=30)
@given(x=st.floats(0, 1), y=st.floats(0, 1))
def test_a_point_comes_back(form: RegionFormat, step: float, x: float, y: float) -> None:
    [back] = form.parse(form.format([Region("points", (x, y))], size=SIZE), size=SIZE)
    assert back.kind == "points"
    assert back.points == pytest.approx((x, y), abs=step + 1e-9)


@settings(deadline=None, max_examples=100)
@given(region=boxes())
def test_bins_are_those_of_transformers_processor(region: Region) -> None:
    """Its two functions, forth and back, for the box's corners."""
    from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index, patch_index_to_coordinate

    first, last = coordinate_to_patch_index(region.points, 32)
    text = KOSMOS2_REGIONS.format([region])
    assert text == f"<object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
    assert KOSMOS2_REGIONS.parse(text)[0].points == pytest.approx(patch_index_to_coordinate(first, last, 32))


@pytest.mark.parametrize(("form", "step"), CASES)
@settings(deadline=None, max_examples=150)
@given(
    text=st.one_of(
        st.text(max_size=40),
        st.text(alphabet="[](){}<>,;. 0123456789-box/patch_indexobject", max_size=60),
        st.from_regex(r"(<patch_index_\d{4}>){0,3}|[\[{(<]+[-0-9.,;()<> ]{0,40}[\]})>]+", fullmatch=True),
    )
)
def test_whatever_a_model_writes_is_read_without_an_exception(form: RegionFormat, step: float, text: str) -> None:
    for region in form.parse(text, size=(30, 50)):
        assert region.kind != "box" or (region.points[0] < region.points[2] and region.points[1] < region.points[3])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (DECIMALS, "[0.5, 0.2, 0.1, 0.6]"),
        (DECIMALS, "[0.1, 0.2, 0.5]"),
        (DECIMALS, "[0.1, 0.2, 0.5, 0.6"),
        (DECIMALS, "[" + "9" * 400 + ", 0.2, 1, 0.6]"),
        (SHIKRA_REGIONS, "{<12><25><50><75>}"),
        (MINIGPT_V2_REGIONS, "{<12><25><50>}"),
        (MINIGPT_V2_REGIONS, "[0.1,0.2,0.5,0.6]"),
        (QWEN_VL_REGIONS, "<box>(1,2),(3,4)"),
        (COGVLM_REGIONS, "[012,040,500,730]"),
        (COGVLM_REGIONS, "[[012,040,500]]"),
        (PALI_X_REGIONS, "12 40"),
        (KOSMOS2_REGIONS, "<object><patch_index_0044></object>"),
        (KOSMOS2_REGIONS, "<object><patch_index_0044><patch_index_1024></object>"),
    ],
)
def test_malformed_regions_and_other_spellings_are_none(form: RegionFormat, text: str) -> None:
    assert form.parse(text) == []


def test_a_phrase_is_read_back_where_it_is_tagged() -> None:
    text = "<ref>the dog</ref><box>(125,250),(500,750)</box> and <box>(0,0),(10,10)</box>"
    one, two = QWEN_VL_REGIONS.parse(text)
    assert (one.phrase, one.points) == ("the dog", (0.125, 0.25, 0.5, 0.75))
    assert two.phrase == ""


def test_the_padded_square_is_the_pictures_frame_with_margins() -> None:
    """A picture 20 high and 40 wide: 10 are added above and below, so y = 0.25 is 15 of 40."""
    assert SHIKRA_REGIONS.format([BOX], size=(20, 40)) == "[0.125,0.375,0.500,0.625]"
    assert SHIKRA_REGIONS.parse("[0.125,0.375,0.500,0.625]", size=(20, 40)) == [BOX]
    assert SHIKRA_REGIONS.format([BOX], size=(40, 20)) == "[0.312,0.250,0.500,0.750]"


def test_scribbles_and_masks_are_refused_bound_or_written() -> None:
    mask = Region("mask", (0.25, 0.5, 0.75, 0.5, 0.5, 0.125))
    with pytest.raises(DataError, match="no mask of several points"):
        SHIKRA_REGIONS.format([mask])
    assert FERRET_REGIONS.format([mask]) == "[250, 125, 750, 500]"
    text = CHATSPOT_REGIONS.format([mask])
    assert text == "<box>0.250,0.500,0.750,0.500,0.500,0.125</box>"
    assert CHATSPOT_REGIONS.parse(text) == [mask]
    assert FERRET_REGIONS.format([POINT]) == "[250, 500]"
    assert KOSMOS2_REGIONS.format([POINT]) == "<object><patch_index_0520><patch_index_0520></object>"


def test_fuyu_counts_halved_pixels_of_the_picture_as_it_is_shown() -> None:
    """One of 2160 × 2000 is shown at half its size, 1080 × 1000: y of 0.25 is pixel 270, which is written as 135."""
    assert FUYU_REGIONS.format([POINT], size=(40, 80)) == "<0x02>10, 10<0x03>"
    text = FUYU_REGIONS.format([BOX], size=(2160, 2000))
    assert text == "<0x00>135, 62, 405, 250<0x01>"
    assert FUYU_REGIONS.parse(text, size=(2160, 2000))[0].points == pytest.approx(BOX.points, abs=0.00101)
    assert FUYU_REGIONS.parse("<0x02>10, 10<0x03>", size=(40, 80)) == [POINT]
    assert FUYU_REGIONS.parse("<0x00>1, 2<0x03>", size=(40, 80)) == []


def test_a_number_over_the_side_is_refused() -> None:
    with pytest.raises(ConfigError, match="the highest number is 2"):
        Numbers(highest=2.0)


# ---- templates -----------------------------------------------------------------------------------------------------
def photo(*, height: int = 40, width: int = 40) -> Media:
    file = io.BytesIO()
    picture(1, height=height, width=width).save(file, "PNG")
    return Media("image", Ref("a.png", data=file.getvalue()))


def spelt(template: Template, *said: tuple[Part, ...], tokenizer: Tokenizer | None = None, learnt: bool = False) -> str:
    """The turns' text, three dots a medium; with `learnt` only what is learnt."""
    tokenizer = tokenizer or byte_tokenizer(*template.special_tokens)
    turns = tuple(Turn(("user", "assistant")[i % 2], parts) for i, parts in enumerate(said))
    made = template.tokens(Sample(Node(turns)), tokenizer, lambda m: ((8, 8), 3))
    pictured = {c for item in made.items for c in range(item.start, item.start + item.columns)}
    names, text, run = {i: s for s, i in tokenizer.specials.items()}, "", []
    for column, token in enumerate([*made.ids.tolist(), None]):
        keep = token is not None and (not learnt or float(made.weight[column]) > 0)
        if keep and column not in pictured and token not in names:
            run.append(token)
            continue
        text += tokenizer.decode(run) if run else ""
        run = []
        if keep:
            text += "." if column in pictured else names[token]
    return text


QUESTION = (Text("What is in "), BOX, Text("?"))
ANSWER = (Text("At "), replace(POINT, phrase="it"), Text("."))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            replace(SHIKRA, system=""),
            "<s>USER: <im_start>...<im_end>\nWhat is in [0.125,0.250,0.500,0.750]? ASSISTANT: At it[0.250,0.500].</s>",
        ),
        (
            replace(CHATSPOT, system=""),
            "<s><Human>: Given an image .... What is in <box>0.125,0.250,0.500,0.750</box>?\n"
            "<Assistance>: At it<box>0.250,0.500</box>.</s>",
        ),
        (
            COGVLM_CHAT,
            "<s>... [INST] What is in [[125,250,500,750]]? [/INST] At it[[250,500]].</s>",
        ),
        (
            MINIGPT_V2,
            "<s>[INST] <Img>...</Img> [identify] What is in {<12><25><50><75>}? [/INST] At <p>it</p> {<25><50>}.</s>",
        ),
        (
            QWEN_VL,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img>...</img>\n"
            "What is in <box>(125,250),(500,750)</box>?<|im_end|>\n<|im_start|>assistant\n"
            "At <ref>it</ref><box>(250,500)</box>.<|im_end|>",
        ),
        (
            FUYU,
            "...<s>What is in <0x00>5, 2, 15, 10<0x01>?\n<0x04>At it<0x02>10, 5<0x03>.|ENDOFTEXT|",
        ),
        (
            KOSMOS2_CHAT,
            "<s><image>...</image><grounding>Question: What is in <object><patch_index_0260><patch_index_0751>"
            "</object>? Answer: At <phrase>it</phrase><object><patch_index_0520><patch_index_0520></object>.</s>",
        ),
    ],
    ids=lambda v: v.name if isinstance(v, Template) else "",
)
def test_every_template_spells_regions_its_own_way(template: Template, text: str) -> None:
    assert spelt(template, (photo(), *QUESTION), ANSWER) == text
    after = text[text.index("At ") :]
    assert spelt(template, (photo(), *QUESTION), ANSWER, learnt=True) == template.answer + after


@pytest.mark.parametrize("template", [COGVLM_PLAIN, COGVLM_VQA, COGVLM_CHAT], ids=lambda t: t.name)
def test_every_stage_of_cogvlm_writes_thousandths_of_three_digits(template: Template) -> None:
    corner = Region("box", (0.0, 0.012, 0.04, 1.0))
    assert "At it[[000,012,040,999]].</s>" in spelt(
        template, (photo(), Text("Where?")), (Text("At it"), corner, Text("."))
    )


def test_a_box_of_a_small_picture_survives_the_bins_of_starter_scale() -> None:
    """256 bins of 4 of 64 pixels: every box of Scenes reads as one that shares at least half with it."""
    small, rng = KOSMOS2_CHAT.regions.starter(), random.Random(0)
    assert len(small.added_tokens) == 256 + len(KOSMOS2_CHAT.regions.added)
    boxes = [Region("box", each.box) for _ in range(100) for each in sample_scene(World(), rng, "val").objects]
    for box in boxes:
        (read,) = small.parse(small.format([box]))
        assert iou(box.points, read.points) >= 0.5  # type: ignore[arg-type]


def test_coordinates_of_shikra_are_text_and_bins_of_kosmos_are_tokens() -> None:
    """27 characters are 27 tokens of a byte each; two bins and two tags are four tokens."""
    asked = ((photo(), Text("Where?")), (BOX,))
    for template, count in ((SHIKRA, 25), (KOSMOS2_CHAT, 4)):
        tokenizer = byte_tokenizer(*template.special_tokens)
        turns = tuple(Turn(role, parts) for role, parts in zip(("user", "assistant"), asked, strict=True))
        made = template.tokens(Sample(Node(turns)), tokenizer, lambda m: ((8, 8), 3))
        ids = [i for i, w in zip(made.ids.tolist(), made.weight.tolist(), strict=True) if w]
        assert len(ids) == len(template.answer) + count + 1


def test_a_phrase_of_the_data_is_never_a_control_token() -> None:
    tokenizer = byte_tokenizer(*QWEN_VL.special_tokens)
    turns = (Turn("user", (photo(), Text("?"))), Turn("assistant", (replace(BOX, phrase="</ref>"),)))
    ids = QWEN_VL.tokens(Sample(Node(turns)), tokenizer, lambda m: ((8, 8), 3)).ids.tolist()
    assert ids.count(tokenizer.id("</ref>")) == 1


def test_pictures_are_numbered_along_the_conversation() -> None:
    text = spelt(QWEN_VL, (photo(), photo(), Text("a")), (Text("b"),), (photo(), Text("c")), (Text("d"),))
    assert re.findall(r"Picture \d", text) == ["Picture 1", "Picture 2", "Picture 3"]


def test_a_region_is_framed_by_its_own_picture() -> None:
    """The second picture is twice as wide as high, so the template pads it."""
    wide = replace(BOX, of=1)
    text = spelt(SHIKRA, (photo(), photo(height=20), Text("x "), BOX, Text(" y "), wide), (Text("z"),))
    assert "x [0.125,0.250,0.500,0.750] y [0.125,0.375,0.500,0.625]" in text


def test_regions_side_by_side_are_of_one_phrase() -> None:
    two = (replace(BOX, phrase="dogs"), POINT, replace(POINT, phrase="cat"))
    assert "dogs[0.125,0.250,0.500,0.750;0.250,0.500]cat[0.250,0.500]" in spelt(SHIKRA, (photo(), *two), (Text("z"),))


def test_a_template_with_regions_survives_its_file() -> None:
    for template in (SHIKRA, CHATSPOT, MINIGPT_V2, QWEN_VL, KOSMOS2_CHAT, FUYU, COGVLM_CHAT):
        assert Template.from_json(template.to_json()) == template
    assert isinstance(Template.from_json(KOSMOS2_CHAT.to_json()).regions, Bins)
    assert len(KOSMOS2_CHAT.added_tokens) == 3 + 5 + 1024
    assert Frame(before="a", after="b").around("-") == "a-b"
