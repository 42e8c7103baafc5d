"""Published templates of systems that speak of regions, and how they spell them.

Numbers count to the right and down. A template's `added` are the tokens that its authors added or that its LLM has as
special tokens; those that a tokenizer has already stay as they are.
"""

from quintet.data.regions import Bins, Numbers
from quintet.data.template import Frame, Template

__all__ = [
    "CHATSPOT",
    "CHATSPOT_REGIONS",
    "COGVLM_REGIONS",
    "FERRET",
    "FERRET_REGIONS",
    "FUYU_REGIONS",
    "KOSMOS2_REGIONS",
    "MINIGPT_V2_REGIONS",
    "PALI_X_REGIONS",
    "QWEN_VL_REGIONS",
    "SHIKRA",
    "SHIKRA_REGIONS",
]

# ---- regions -----------------------------------------------------------------------------------------------------
SHIKRA_REGIONS = Numbers(group=Frame(before="[", after="]"), also=";", decimals=3, frame="square")
"""[0.123,0.456,0.789,0.900], several of one phrase [x1,y1,x2,y2;x1,y1,x2,y2], a point [0.123,0.456]; shares of the
padded square, behind the phrase (mllm/dataset/process_function/box_process_function.py)."""

CHATSPOT_REGIONS = Numbers(
    place=Frame(before="<box>", after="</box>"), decimals=3, outline="write", added=("<box>", "</box>")
)
"""<box>x,y,x,y,…</box>, as many points as it takes. The paper gives no form of the numbers; ours are thousandths."""

MINIGPT_V2_REGIONS = Numbers(
    phrase=Frame(before="<p>", after="</p> "),
    place=Frame(before="{", after="}"),
    also="<delim>",
    number=Frame(before="<", after=">"),
    comma="",
    between="",
    scale=100.0,
    highest=100.0,
    rounding="down",
)
"""<p>the dog</p> {<12><34><56><78>}, several joined by <delim>; all plain text (minigpt4/datasets/datasets)."""

QWEN_VL_REGIONS = Numbers(
    phrase=Frame(before="<ref>", after="</ref>"),
    place=Frame(before="<box>", after="</box>"),
    point=Frame(before="(", after=")"),
    scale=1000.0,
    highest=999.0,
    rounding="down",
    added=("<ref>", "</ref>", "<box>", "</box>"),
)
"""<ref>the dog</ref><box>(12,40),(500,730)</box>, whole numbers in [0, 1000)."""

FUYU_REGIONS = Numbers(
    place=Frame(before="<0x00>", after="<0x01>"),
    dot=Frame(before="<0x02>", after="<0x03>"),
    comma=", ",
    between=", ",
    order="yx",
    frame="pixels",
    scale=0.5,
    highest=960.0,
    added=("<0x00>", "<0x01>", "<0x02>", "<0x03>"),
)
"""<0x00>top, left, bottom, right<0x01>, a point <0x02>y, x<0x03>: pixels, halved, of a picture of at most 1080 × 1920
(`FuyuProcessor`, which users give <box> and <point>; it writes a token a number, without the commas)."""

KOSMOS2_REGIONS = Bins(
    phrase=Frame(before="<phrase>", after="</phrase>"),
    group=Frame(before="<object>", after="</object>"),
    also="</delimiter_of_multi_objects/>",
    added=("<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>"),
)
"""<phrase>the dog</phrase><object><patch_index_0044><patch_index_0863></object>, bins of 32 × 32 (the tags of
transformers' processor; the paper writes <p>, <box> and <loc_44>)."""

COGVLM_REGIONS = Numbers(
    group=Frame(before="[[", after="]]"),
    also=";",
    scale=1000.0,
    highest=999.0,
    digits=3,
    rounding="down",
)
"""[[012,040,500,730]], several [[x0,y0,x1,y1;x0,y0,x1,y1]]: whole thousandths of three digits, 000 to 999 (README)."""

FERRET_REGIONS = Numbers(
    place=Frame(before="[", after="]"),
    also=", ",
    comma=", ",
    between=", ",
    scale=1000.0,
    highest=1000.0,
    rounding="down",
    outline="bound",
)
"""[x1, y1, x2, y2] or [x, y], whole numbers of a picture 1000 wide and high; free forms by the box around them."""

PALI_X_REGIONS = Numbers(
    also=" and ", comma=" ", between=" ", order="yx", scale=1000.0, highest=999.0, rounding="down", least=4
)
"""40 12 730 500 behind the phrase: top, left, bottom, right in whole thousandths, several joined by "and" (Pix2seq's
bins as text, from memory). Nothing stands around the numbers, so only boxes are read back."""

# ---- templates ---------------------------------------------------------------------------------------------------
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

SHIKRA = Template(
    name="shikra",
    system=_VICUNA,
    system_frame=Frame(after=" "),
    user=Frame(before="USER: ", after=" "),
    assistant="ASSISTANT:",
    end="</s>",
    media={"image": Frame(before="<im_start>", after="<im_end>")},
    added=("<im_start>", "<im_end>"),
    regions=SHIKRA_REGIONS,
)
"""Vicuna 1.1 with the picture between <im_start> and <im_end> (mllm/conversation, config/_base_/model)."""

CHATSPOT = Template(
    name="chatspot",
    system=_VICUNA,
    system_frame=Frame(after="\n"),
    user=Frame(before="<Human>: ", after="\n"),
    assistant="<Assistance>:",
    end="</s>",
    media={"image": Frame(before="Given an image ", after=".")},
    joint=" ",
    regions=CHATSPOT_REGIONS,
)
"""<Human>: Given an image <image>. What is the object in this region? <box>..</box> and <Assistance>: {a} (section
4.1). The paper does not print the system message; ours is Vicuna's."""

FERRET = Template(
    name="ferret",
    system=_VICUNA,
    system_frame=Frame(after=" "),
    user=Frame(before="USER: ", after=" "),
    assistant="ASSISTANT:",
    end="</s>",
    place="front",
    added=("<region_fea>",),
    regions=FERRET_REGIONS,
    pointer=" <region_fea>",
)
"""Vicuna 1.1; a region that the user refers to is [x1, y1, x2, y2] <region_fea>, one in an answer has no feature.

The sentence that gives the scale of coordinates in the first turn is part of the data's questions.
"""
