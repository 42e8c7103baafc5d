"""Published conversation templates. Sources: each system's paper and code, as `Paper` of its recipe names them."""

from dataclasses import replace

from quintet.data.template import DECIMALS, Frame, Template

__all__ = ["LLAVA_V0", "PLAIN", "VICUNA_V1"]

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
