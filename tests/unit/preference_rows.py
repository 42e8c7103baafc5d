"""One row of preferences in every layout, as its publisher has it, and what is read of it in short."""

import copy
import json
from pathlib import Path
from typing import Any

from conftest import picture
from quintet.data.sources import Source, open_source
from quintet.values import Media, Node, Sample, Text, Turn

QUESTION, GOOD, BAD = "What is on the table?", "A cup and a spoon.", "A cup and a knife."
SYSTEM = "A chat between a curious user and an artificial intelligence assistant. It gives helpful answers."

ANNOTATED = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def rated(response: str, *ratings: str) -> dict[str, Any]:
    """A completion of VLFeedback."""
    notes = {a: {"Rating": r, "Rationale": "So it is."} for a, r in zip(ANNOTATED, ratings, strict=True)}
    return {"model": "m", "response": response, "annotations": notes}


def turn(role: str, words: Any) -> dict[str, Any]:
    return {"from": role, "value": words}


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ASKED = [turn("human", f"<image>\n{QUESTION}")]
MESSAGES = [message("user", f"<image>{QUESTION}"), message("assistant", GOOD)]
FOUR = [rated("Fine.", "5", "5", "5"), rated("Good.", "4", "5", "3"), rated("So so.", "3", "4", "2"),
        rated("Bad.", "1", "5", "1")]  # fmt: skip

ROWS: dict[str, dict[str, Any]] = {
    "llava-rlhf": {
        "id": "000000033471", "image": "a.png", "conversations": ASKED, "hallucination": True,
        "output_1": turn("llava", BAD), "output_2": turn("llava", GOOD), "preference": 2,
    },
    "llava-rlhf-prompts": {
        "id": "p", "image": "a.png", "conversations": [*ASKED, turn("gpt", GOOD)], "caption_type": 3,
        "length_bonus": 0.5,
    },
    "rlhf-v": {
        "ds_name": "RLHF-V", "image": "a.png", "origin_dataset": "LLaVA", "origin_split": "x", "idx": 3,
        "image_path": "elsewhere.jpg", "text": json.dumps({"question": QUESTION, "chosen": GOOD, "rejected": BAD}),
    },
    "rlaif-v": {
        "ds_name": "r", "image": "a.png", "question": QUESTION, "chosen": GOOD, "rejected": BAD, "idx": 1,
        "origin_dataset": "COCO", "origin_split": "{}", "image_path": "elsewhere.jpg",
    },
    "hsa-dpo": {
        "id": "a", "question": QUESTION, "chosen": GOOD, "rejected": BAD, "chosen_score": 0.2, "rejected_score": 1.8,
    },
    "halva": {
        "id": 5, "image": "a.png", "tag": "closed", "question": f"<image>\n{QUESTION}",
        "correct_answer": GOOD, "correct_answer_masked": "A <MASK>cup</MASK> and a <MASK>spoon </MASK>.",
        "hallucinated_answer": "A red plate and a knife.",
        "hallucinated_answer_masked": "A<MASK> red plate</MASK> and a <MASK>knife</MASK>.",
    },
    "llava-hound": {
        "id": "v_1", "video": "v", "prompt": QUESTION, "answer": "A cup.", "chosen": GOOD, "rejected": BAD,
        "chosen_score": 5, "rejected_score": 2,
    },
    "povid": {
        "id": "p", "image": "a.png", "conversations": [*ASKED, turn("gpt", GOOD)],
        "rejected_conversations": [*ASKED, turn("gpt", BAD)],
    },
    "llama-factory": {
        "conversations": ASKED, "images": ["a.png"], "chosen": turn("gpt", GOOD), "rejected": turn("gpt", BAD),
    },
    "ms-swift": {"messages": MESSAGES, "images": ["a.png"], "rejected_response": BAD, "margin": 0.5},
    "ms-swift, a message": {
        "messages": MESSAGES, "images": ["a.png"], "rejected_response": [message("assistant", BAD)],
    },
    "ms-swift, messages": {
        "messages": MESSAGES, "images": ["a.png"], "rejected_images": ["a.png"],
        "rejected_messages": [MESSAGES[0], message("assistant", BAD)],
    },
    "trl": {
        "images": ["a.png"], "chosen": [message("assistant", [{"type": "text", "text": GOOD}])],
        "prompt": [message("user", [{"type": "image", "text": None}, {"type": "text", "text": QUESTION}])],
        "rejected": [message("assistant", [{"type": "text", "text": BAD}])],
    },
    "trl, plain": {
        "image": "a.png", "prompt": QUESTION, "chosen": GOOD, "rejected": BAD, "chosen_score": 8, "score_rejected": 2,
    },
    "mdpo": {
        "img_path": "a.png", "prompt": f"{SYSTEM} USER: <image>\n{QUESTION} ASSISTANT:",
        "chosen": GOOD, "rejected": BAD,
    },
    "stic": {
        "image": "a.png", "image_corruption": False, "hallu_prompt": "",
        "chosen": [message("user", QUESTION), message("assistant", GOOD)],
        "rejected": [message("user", QUESTION), message("assistant", BAD)],
    },
    "bpo": {
        "image": "a.png", "prompt": f"{QUESTION}\n<image>",
        "completions": [{"score": 1, "response": GOOD, "type": "gt"}, {"score": 0, "response": BAD, "type": "llm-hal"},
                        {"score": 0, "response": "A plate.", "type": "mllm-hal"}],
    },
    "vlfeedback": {
        "id": "svit-1", "prompt": QUESTION, "img_path": "a.png", "models": ["m"] * 4, "completions": FOUR,
    },
    "lvlm-nlf": {
        "image_id": "000000151112.png", "caption": "A table.",
        "interaction": [
            {"user": QUESTION, "model": BAD, "rating": "2", "critique NLF": "It is no knife."},
            {"user": "Look at its shape.", "model": GOOD, "rating": "4", "critique NLF": "All is right."},
        ],
    },
}  # fmt: skip
"""By layout; after a comma, another form of it."""


def row(name: str, **more: Any) -> dict[str, Any]:
    """A copy of a row, with other values; None takes a key away."""
    made = copy.deepcopy(ROWS[name]) | more
    return {key: value for key, value in made.items() if value is not None}


def source(folder: Path, *rows: Any, name: str = "pairs.jsonl") -> Source:
    """A file of these rows in a folder with pictures and the frames of a video, opened without a word about it."""
    for n, file in enumerate(("a.png", "b.png", "000000151112.png")):
        picture(n, height=16, width=16).save(folder / file)
    (folder / "v").mkdir(exist_ok=True)
    for n in (1, 2, 10):
        picture(n, height=16, width=16).save(folder / "v" / f"c01_{n}.jpeg")
    (folder / "v" / "notes.txt").touch()
    lines = "".join(json.dumps(each) + "\n" for each in rows)
    (folder / name).write_text(json.dumps(rows, indent=1) if name.endswith(".json") else lines)
    return open_source(folder / name)


def said(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    """Who says what: a picture is its name in brackets, marked words have braces and their mark."""

    def short(part: Any) -> str:
        if isinstance(part, Media):
            return f"[{part.ref.name}]"
        assert isinstance(part, Text)
        return part.text if part.mark is None else f"{{{part.mark}: {part.text}}}"

    return [(turn.role, "".join(map(short, turn.parts))) for turn in turns]


def branches(node: Node) -> list[tuple[Any, ...]]:
    """Of each child: score, name, numbers, the words of its last turn."""
    return [
        (child.answer.score, child.answer.name, dict(child.answer.numbers), said(child.turns)[-1][1])
        for child in node.children
        if child.answer
    ]


def shown(sample: Sample) -> tuple[list[tuple[str, str]], list[tuple[Any, ...]]]:
    """The prompt of a tree and its branches."""
    return said(sample.root.turns), branches(sample.root)
