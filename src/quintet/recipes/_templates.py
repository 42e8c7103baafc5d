"""Published conversation templates, those of projection recipes and what several share.

Sources: each system's paper and code, as `Paper` of its recipe names them.
"""

from dataclasses import replace

from quintet.data.identifier import Identifier
from quintet.data.template import DECIMALS, Frame, Template
from quintet.recipes._templates_regions import COGVLM_REGIONS, FUYU_REGIONS, MINIGPT_V2_REGIONS

__all__ = [
    "ALPACA",
    "COGVLM_CHAT",
    "COGVLM_PLAIN",
    "COGVLM_VQA",
    "FROZEN_CAPTION",
    "FROZEN_VQA",
    "FUYU",
    "INTERLEAVED",
    "LLAVA_V0",
    "MINIGPT_V2",
    "PLAIN",
    "PLAIN_EOS",
    "VICUNA_V1",
]

_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

VICUNA_V1 = Template(
    name="vicuna_v1",
    system=_SYSTEM,
    system_frame=Frame(after=" "),
    user=Frame(before="USER: ", after=" "),
    assistant="ASSISTANT:",
    end="</s>",
    place="front",
    regions=replace(DECIMALS, frame="square"),
)
"""{system} USER: <image>\\n{q} ASSISTANT: {a}</s>USER: …  (LLaVA-1.5, conv `v1`); boxes are shares of the padded
square, with two decimals (its data)."""

LLAVA_V0 = Template(
    name="llava_v0",
    system=_SYSTEM,
    system_frame=Frame(after="###"),
    user=Frame(before="Human: ", after="###"),
    assistant="Assistant:",
    end="###",
    place="random",
)
"""{system}###Human: {q}\\n<image>###Assistant: {a}###, the picture before or after the question at random (LLaVA)."""

PLAIN = Template(
    name="plain",
    assistant="",
    answer="",
    end="\n",
    joint="",
    questions=False,
)
"""<image>{caption}\\n: the question is dropped (LLaVA's code from v1.0 on)."""

PLAIN_EOS = replace(PLAIN, name="plain_eos", end="</s>")
"""<image>{caption}</s>."""

INTERLEAVED = Template(
    name="interleaved",
    assistant="",
    answer=" ",
    end="</s>",
    joint="",
    user_weight=1.0,
)
"""<image>{text}<image>{text}: documents with their pictures where they stand, every word learnt (VILA on MMC4)."""

IDENTIFIERS = (
    Identifier(tag="[identify]", asks=r"<region>"),
    Identifier(tag="[grounding]", asks=r"\bground(ed|ing)?\b|\bdescri.*\bboxes\b"),
    Identifier(tag="[detection]", asks=r"\bdetect|\bfind all\b|\bboxes\b"),
    Identifier(tag="[refer]", asks=r"\bbox\b|\blocation\b|\blocate\b"),
    Identifier(tag="[caption]", asks=r"\bdescri|\bdepict|\bcaption\b|^(which|what|name the) objects\b"),
    Identifier(tag="[vqa]", asks=r"\?|^(count|read|name|answer|choose)\b"),
)
"""MiniGPT-v2's six (section 3.2). Its code writes one before each data set's instructions; here the words choose, the
same in training and in chat."""

MINIGPT_V2 = Template(
    name="minigpt_v2",
    user=Frame(before="<s>[INST] ", after=" [/INST]"),
    assistant="",
    end="</s>",
    bos=False,
    media={"image": Frame(before="<Img>", after="</Img>")},
    joint=" ",
    place="front",
    regions=MINIGPT_V2_REGIONS,
    identifiers=IDENTIFIERS,
)
"""<s>[INST] <Img>…</Img> [vqa] {q} [/INST] {a}</s>: Llama 2's chat; text alone has no identifier."""

FROZEN_CAPTION = Template(name="frozen_caption", assistant="", answer="", end="</s>", joint="", questions=False)
"""<image>{caption}</s> (Frozen)."""

FROZEN_VQA = Template(
    name="frozen_vqa",
    user=Frame(before="Question: ", after=" "),
    assistant="Answer:",
    end="</s>",
    joint="",
    place="outside",
)
"""<image>Question: {q} Answer: {a}</s> (Frozen's zero-shot and few-shot questions)."""

FUYU = Template(
    name="fuyu",
    system_frame=Frame(after="\n"),
    user=Frame(before="<s>", after="\n"),
    assistant="<0x04>",
    answer="",
    end="|ENDOFTEXT|",
    bos=False,
    joint="",
    place="outside",
    added=("<0x04>", "|ENDOFTEXT|"),
    regions=FUYU_REGIONS,
)
"""<image><s>{q}\\n<0x04>{a}|ENDOFTEXT|: the picture comes before the beginning of the text (`FuyuProcessor`)."""

COGVLM_PLAIN = Template(
    name="cogvlm_plain",
    assistant="",
    answer="",
    end="</s>",
    joint="",
    questions=False,
    place="outside",
    places="inner",
    regions=COGVLM_REGIONS,
)
"""<image>{caption}</s> (CogVLM's pre-training on pairs)."""

COGVLM_VQA = Template(
    name="cogvlm_vqa",
    user=Frame(before="Question: "),
    assistant=" Answer:",
    end="</s>",
    joint="",
    place="outside",
    places="inner",
    regions=COGVLM_REGIONS,
)
"""<image>Question: {q} Answer: {a}</s>. CogVLM writes "Short answer:" for VQA sets, whose answers are a word or two."""

COGVLM_CHAT = Template(
    name="cogvlm_chat",
    user=Frame(before=" [INST] ", after=" [/INST]"),
    assistant="",
    end="</s>",
    joint="",
    place="outside",
    places="inner",
    regions=COGVLM_REGIONS,
)
"""<image> [INST] {q} [/INST] {a}</s> [INST] … (CogVLM, `_history_to_prompt`). The columns of a picture between its
begin and its end share one position (paper, section 2.2)."""

ALPACA = Template(
    name="alpaca",
    system=(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    ),
    system_frame=Frame(after="\n\n"),
    user=Frame(before="### Instruction:\n", after="\n\n"),
    assistant="### Response:",
    answer="",
    end="</s>",
    joint="",
    place="outside",
)
"""{system}\n\n### Instruction:\n{q}\n\n### Response:{a}</s>, a picture's mark before the words (LLaMA-Adapter)."""
