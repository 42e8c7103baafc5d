"""Published conversation templates. Sources: each system's paper and code, as `Paper` of its recipe names them."""

from quintet.data.template import Frame, Template

__all__ = ["ALPACA", "COGVLM_CHAT", "COGVLM_PLAIN", "COGVLM_VQA", "LLAVA_V0", "PLAIN", "VICUNA_V1"]

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
)
"""{system} USER: <image>\\n{q} ASSISTANT: {a}</s>USER: …  (LLaVA-1.5, conv `v1`)."""

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

COGVLM_PLAIN = Template(
    name="cogvlm_plain",
    assistant="",
    answer="",
    end="</s>",
    joint="",
    questions=False,
    place="start",
    places="inner",
)
"""<image>{caption}</s> (CogVLM's pre-training on pairs)."""

COGVLM_VQA = Template(
    name="cogvlm_vqa",
    user=Frame(before="Question: "),
    assistant=" Answer:",
    end="</s>",
    joint="",
    place="start",
    places="inner",
)
"""<image>Question: {q} Answer: {a}</s>. CogVLM writes "Short answer:" for VQA sets, whose answers are a word or two."""

COGVLM_CHAT = Template(
    name="cogvlm_chat",
    user=Frame(before=" [INST] ", after=" [/INST]"),
    assistant="",
    end="</s>",
    joint="",
    place="start",
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
    place="start",
)
"""{system}\n\n### Instruction:\n{q}\n\n### Response:{a}</s>, a picture's mark before the words (LLaMA-Adapter)."""
