"""Templates of the systems with gated cross-attention.

Sources: each system's paper and code, as `Paper` of its recipe names them.
"""

from quintet.data.template import Frame, Template

__all__ = [
    "FLAMINGO",
    "FLAMINGO_PAIR",
    "IDEFICS",
    "IDEFICS_INSTRUCT",
    "MULTIMODAL_GPT",
    "OPEN_FLAMINGO",
    "OPEN_FLAMINGO_PAIR",
]

FLAMINGO_PAIR = Template(
    name="flamingo_pair",
    answer="",
    end="<EOC>",
    chunk="<EOC>",
    joint="",
    questions=False,
    added=("<EOC>",),
)
"""<image>{text}<EOC><image>{text}<EOC>; where the fusion is gated cross-attention, <image> is its marker (Flamingo)."""

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
    chunk="<|endofchunk|>",
    preface=False,
    joint="",
    questions=False,
    added=("<|endofchunk|>",),
)
"""<image>{text}<|endofchunk|><image>{text}<|endofchunk|>  (OpenFlamingo, whose code ends with the LLM's end token).
Words before the first picture are not learnt and end in no chunk (its `train_utils.py` and `data.py`)."""

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
pictures that follow each other; ours two. In a document, {text} stands between its pictures, </s> at its end."""

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
