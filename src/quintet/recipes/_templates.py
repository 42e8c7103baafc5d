"""Published conversation templates. Sources: each system's paper and code, as `Paper` of its recipe names them."""

from dataclasses import replace

from quintet.data.template import DECIMALS, Frame, Template

__all__ = [
    "ALPACA",
    "BLIP2_OPT",
    "BLIP2_OPT_CAPTION",
    "BLIP2_T5",
    "BLIP2_T5_CAPTION",
    "COGVLM_CHAT",
    "COGVLM_PLAIN",
    "COGVLM_VQA",
    "FLAMINGO",
    "FLAMINGO_PAIR",
    "FROZEN_CAPTION",
    "FROZEN_VQA",
    "FUYU",
    "IDEFICS",
    "IDEFICS_INSTRUCT",
    "INSTRUCTBLIP",
    "INTERLEAVED",
    "KOSMOS",
    "KOSMOS2_CAPTION",
    "KOSMOS2_CHAT",
    "KOSMOS_CAPTION",
    "LLAVA_V0",
    "LYNX",
    "MINIGPT4",
    "MINIGPT4_CHAT",
    "MINIGPT_V2",
    "MPLUG_OWL",
    "MULTIMODAL_GPT",
    "OPEN_FLAMINGO",
    "OPEN_FLAMINGO_PAIR",
    "PLAIN",
    "PLAIN_EOS",
    "QWEN_VL",
    "QWEN_VL_CAPTION",
    "QWEN_VL_TASKS",
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

BLIP2_T5_CAPTION = Template(name="blip2_t5_caption", bos=False, answer="", end="</s>", joint="", questions=False)
"""<image> to the encoder, {caption}</s> from the decoder (BLIP-2, LAVIS' `blip2_t5` without a prefix)."""

BLIP2_T5 = Template(
    name="blip2_t5",
    bos=False,
    user=Frame(before="Question: ", after=" "),
    assistant="Short answer:",
    end="</s>",
    joint="",
    place="outside",
)
"""<image>Question: {q} Short answer: {a}</s> (BLIP-2, zero-shot questions to Flan-T5)."""

INSTRUCTBLIP = Template(
    name="instructblip",
    bos=False,
    media={"image": Frame(after="</s>")},
    end="</s>",
    joint="",
    place="front",
)
"""<image></s>{q} {a}</s>: no roles; the tokenizer's start token is set to </s> (LAVIS' `blip2_vicuna_instruct`)."""

PLAIN_EOS = replace(PLAIN, name="plain_eos", end="</s>")
"""<image>{caption}</s>."""

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
    place="front",
    questions=True,
    added=(*QWEN_VL_CAPTION.added, "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"),
)
"""<img>…</img>{q} Answer:{a}<|endoftext|> (Qwen-VL's second stage)."""

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
)
"""ChatML, in which a user says "Picture 1: <img>…</img>", a line's end and the question (Qwen-VL-Chat)."""

INTERLEAVED = Template(
    name="interleaved",
    assistant="",
    answer=" ",
    end="</s>",
    joint="",
    user_weight=1.0,
)
"""<image>{text}<image>{text}: documents with their pictures where they stand, every word learnt (VILA on MMC4)."""

MINIGPT_V2 = Template(
    name="minigpt_v2",
    user=Frame(before="[INST] ", after=" [/INST]"),
    assistant="",
    end="</s>",
    media={"image": Frame(before="<Img>", after="</Img>")},
    joint=" ",
    place="front",
)
"""[INST] <Img><image></Img> {q} [/INST] {a}</s>: Llama 2's chat; the question begins with its task identifier."""

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
)
"""<image><s>{q}\\n<0x04>{a}|ENDOFTEXT|: the picture comes before the beginning of the text (`FuyuProcessor`)."""

FLAMINGO_PAIR = Template(
    name="flamingo_pair",
    answer="",
    end="<EOC>",
    joint="",
    questions=False,
    added=("<EOC>",),
)
"""<image>{text}<EOC>; where the fusion is gated cross-attention, <image> is its marker (Flamingo)."""

FLAMINGO = Template(
    name="flamingo",
    user=Frame(before="Question: ", after=" "),
    assistant="Answer:",
    end="<EOC>",
    joint="",
    place="outside",
    added=("<EOC>",),
)
"""<image>Question: {q} Answer: {a}<EOC>  (Flamingo's prompt for questions)."""

OPEN_FLAMINGO_PAIR = Template(
    name="open_flamingo_pair",
    answer="",
    end="<|endofchunk|>",
    joint="",
    questions=False,
    added=("<|endofchunk|>",),
)
"""<image>{text}<|endofchunk|>  (OpenFlamingo)."""

OPEN_FLAMINGO = Template(
    name="open_flamingo",
    user=Frame(before="Question:", after=" "),
    assistant="Short answer:",
    answer="",
    end="<|endofchunk|>",
    joint="",
    place="outside",
    added=("<|endofchunk|>",),
)
"""<image>Question:{q} Short answer:{a}<|endofchunk|>  (OpenFlamingo's prompt for questions)."""

MULTIMODAL_GPT = Template(
    name="multimodal_gpt",
    system=(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    ),
    system_frame=Frame(after="\n\n"),
    media={"image": Frame(before="### Image:\n", after="\n\n")},
    user=Frame(before="### Instruction:\n", after="\n\n"),
    between="\n\n",
    assistant="### Response:\n",
    answer="",
    end="### End.",
    joint="",
    place="outside",
)
"""{system}\\n\\n### Image:\\n<image>\\n\\n### Instruction:\\n{q}\\n\\n### Response:\\n{a}### End.\\n\\n…;
without a picture there is no block `### Image:`. Its code puts the LLM's end token behind the last answer."""

_AROUND = "<fake_token_around_image>"

IDEFICS = Template(
    name="idefics",
    media={"image": Frame(before=_AROUND, after=_AROUND)},
    answer="",
    end="</s>",
    joint="",
    questions=False,
    added=(_AROUND,),
)
"""<fake_token_around_image><image><fake_token_around_image>{text}</s>. Its code writes one such token, not two, between
pictures that follow each other; ours two."""

IDEFICS_INSTRUCT = Template(
    name="idefics_instruct",
    media={"image": Frame(before=_AROUND, after=_AROUND)},
    user=Frame(before="User:", after="<end_of_utterance>\n"),
    between="\n",
    assistant="Assistant:",
    end="<end_of_utterance>",
    joint="",
    added=(_AROUND, "<end_of_utterance>"),
)
"""User:<fake_token_around_image><image><fake_token_around_image>{q}<end_of_utterance>\\n
Assistant: {a}<end_of_utterance>\\nUser:…  (IDEFICS-instruct)."""

COGVLM_PLAIN = Template(
    name="cogvlm_plain",
    assistant="",
    answer="",
    end="</s>",
    joint="",
    questions=False,
    place="outside",
    places="inner",
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

KOSMOS_CAPTION = replace(
    PLAIN_EOS,
    name="kosmos_caption",
    media={"image": Frame(before="<image>", after="</image>")},
    added=("<image>", "</image>"),
)
"""<s><image>…</image>{text}</s> (Kosmos-1)."""

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
    added=(
        *KOSMOS_CAPTION.added,
        *("<grounding>", "<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>"),
        *(f"<patch_index_{n:04}>" for n in range(1024)),
    ),
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
