"""Templates of the systems with query-based connectors.

Sources: each system's paper and code, as `Paper` of its recipe names them.
"""

from dataclasses import replace

from quintet.data.template import Frame, Template
from quintet.recipes._templates import PLAIN_EOS
from quintet.recipes._templates_regions import KOSMOS2_REGIONS, QWEN_VL_REGIONS

__all__ = [
    "BLIP2_ALIGN",
    "BLIP2_OPT",
    "BLIP2_OPT_CAPTION",
    "BLIP2_T5",
    "BLIP2_T5_CAPTION",
    "DLP_TEXT",
    "INSTRUCTBLIP",
    "INSTRUCTBLIP_T5",
    "KOSMOS",
    "KOSMOS2_CAPTION",
    "KOSMOS2_CHAT",
    "KOSMOS_CAPTION",
    "LYNX",
    "MINIGPT4",
    "MINIGPT4_CHAT",
    "MPLUG_OWL",
    "QWEN_VL",
    "QWEN_VL_CAPTION",
    "QWEN_VL_TASKS",
]

MINIGPT4 = Template(
    name="minigpt4",
    system="###",
    system_frame=Frame(),
    user=Frame(before="Human: ", after=" ###"),
    assistant="Assistant:",
    end="###",
    media={"image": Frame(before="<Img>", after="</Img>")},
    joint=" ",
    place="front",
)
"""###Human: <Img>…</Img> {q} ###Assistant: {a}### (MiniGPT-4's second stage)."""

MINIGPT4_CHAT = replace(
    MINIGPT4,
    name="minigpt4_chat",
    system="Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to "
    "you. Please answer my questions.",
    system_frame=Frame(after="###"),
    user=Frame(before="Human: ", after="###"),
)
"""{system}###Human: <Img>…</Img> {q}###Assistant: {a}###Human: … (MiniGPT-4's conversations)."""

BLIP2_ALIGN = Template(name="blip2_align", bos=False, assistant="<s>", answer="", end="</s>", joint="", questions=False)
"""<image><s>{caption}</s>, of which the Q-Former reads the caption; BERT's own names are [CLS] and [SEP] (BLIP-2)."""

BLIP2_OPT_CAPTION = Template(
    name="blip2_opt_caption",
    bos=False,
    media={"image": Frame(after="</s>")},
    answer="",
    end="\n",
    joint="",
    questions=False,
)
"""<image></s>{caption}\\n: OPT's start token stands behind the picture (BLIP-2, LAVIS' `blip2_opt`)."""

BLIP2_OPT = Template(
    name="blip2_opt",
    bos=False,
    media={"image": Frame(after="</s>")},
    user=Frame(before="Question: ", after=" "),
    assistant="Answer:",
    end="\n",
    joint="",
    place="outside",
)
"""<image></s>Question: {q} Answer: {a}\\n (BLIP-2, zero-shot questions to OPT)."""

DLP_TEXT = replace(BLIP2_OPT_CAPTION, name="dlp_text", media={}, assistant="</s>")
"""</s>{sentence}\\n: texts alone; the prompt's columns come before the start token (DLP's P-Former)."""

BLIP2_T5_CAPTION = Template(name="blip2_t5_caption", bos=False, answer="", end="</s>", joint="", questions=False)
"""<image> to the encoder, {caption}</s> from the decoder (BLIP-2, LAVIS' `blip2_t5` without a prefix)."""

BLIP2_T5 = Template(
    name="blip2_t5",
    bos=False,
    user=Frame(before="Question: ", after=" "),
    assistant="Short answer:</s>",
    end="</s>",
    joint="",
    place="outside",
)
"""<image>Question: {q} Short answer:</s> to the encoder, {a}</s> from the decoder (BLIP-2, zero-shot questions to
Flan-T5). T5's tokenizer ends whatever it encodes, the prompt too (LAVIS and transformers)."""

INSTRUCTBLIP = Template(
    name="instructblip",
    bos=False,
    media={"image": Frame(after="</s>")},
    end="</s>",
    joint="",
    place="front",
)
"""<image></s>{q} {a}</s>: no roles; the tokenizer's start token is set to </s> (LAVIS' `blip2_vicuna_instruct`)."""

INSTRUCTBLIP_T5 = replace(INSTRUCTBLIP, name="instructblip_t5", media={}, assistant="</s>")
"""<image>{q}</s> to the encoder, {a}</s> from the decoder (LAVIS' `blip2_t5_instruct`)."""

MPLUG_OWL = Template(
    name="mplug_owl",
    system="The following is a conversation between a curious human and AI assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.",
    system_frame=Frame(after="\n"),
    user=Frame(before="Human: ", after="\n"),
    assistant="AI:",
    end="</s>",
    joint="\nHuman: ",
    place="front",
)
"""{system}\\nHuman: <image>\\nHuman: {q}\\nAI: {a}</s> (mPLUG-Owl)."""

QWEN_VL_CAPTION = Template(
    name="qwen_vl_caption",
    bos=False,
    media={"image": Frame(before="<img>", after="</img>")},
    answer="",
    end="<|endoftext|>",
    joint="",
    questions=False,
    added=("<img>", "</img>", "<|endoftext|>"),
)
"""<img>…</img>{caption}<|endoftext|> (Qwen-VL's first stage)."""

QWEN_VL_TASKS = replace(
    QWEN_VL_CAPTION,
    name="qwen_vl_tasks",
    user=Frame(after=" "),
    assistant="Answer:",
    answer=" ",
    place="front",
    questions=True,
    added=(*QWEN_VL_CAPTION.added, "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"),
    regions=QWEN_VL_REGIONS,
)
"""<img>…</img>{q} Answer: {a}<|endoftext|> (Qwen-VL's second stage)."""

QWEN_VL = Template(
    name="qwen_vl",
    system="You are a helpful assistant.",
    system_frame=Frame(before="<|im_start|>system\n", after="<|im_end|>"),
    user=Frame(before="\n<|im_start|>user\n", after="<|im_end|>\n"),
    assistant="<|im_start|>assistant\n",
    answer="",
    end="<|im_end|>",
    bos=False,
    media={"image": Frame(before="Picture {n}: <img>", after="</img>")},
    added=(*QWEN_VL_TASKS.added, "<|im_start|>", "<|im_end|>"),
    regions=QWEN_VL_REGIONS,
)
"""ChatML, in which a user says "Picture 1: <img>…</img>", a line's end and the question (Qwen-VL-Chat)."""

KOSMOS_CAPTION = replace(
    PLAIN_EOS,
    name="kosmos_caption",
    media={"image": Frame(before="<image>", after="</image>")},
    added=("<image>", "</image>"),
)
"""<s><image>…</image>{text}</s>, or <s>{text}<image>…</image>{text}</s> (Kosmos-1)."""

KOSMOS = replace(
    KOSMOS_CAPTION,
    name="kosmos",
    user=Frame(before="Question: ", after=" "),
    assistant="Answer:",
    answer=" ",
    place="outside",
    questions=True,
)
"""<s><image>…</image>Question: {q} Answer: {a}</s> (Kosmos-1)."""

KOSMOS2_CAPTION = replace(
    KOSMOS_CAPTION,
    name="kosmos2_caption",
    media={"image": Frame(before="<image>", after="</image><grounding>")},
    added=(*KOSMOS_CAPTION.added, "<grounding>"),
    regions=KOSMOS2_REGIONS,
)
"""<s><image>…</image><grounding>{text}</s> (Kosmos-2)."""

KOSMOS2_CHAT = replace(
    KOSMOS2_CAPTION,
    name="kosmos2_chat",
    user=KOSMOS.user,
    assistant=KOSMOS.assistant,
    answer=" ",
    place="outside",
    questions=True,
)
"""<s><image>…</image><grounding>Question: {q} Answer: {a}</s> (Kosmos-2)."""

LYNX = Template(
    name="lynx",
    user=Frame(before="User: ", after="\n"),
    assistant="Bot:",
    end="</s>",
    joint="",
    place="outside",
)
"""<image>User: {q}\\nBot: {a}</s> (Lynx)."""
