"""The field's layouts of rows with several answers to one prompt: by which keys each is told, and what they mean.

| layout | told by | the prompt | the answers |
|---|---|---|---|
| LLaVA-RLHF | `output_1`, `output_2` | `conversations`, `image` | the two; `preference`, 1 or 2, is the better one |
| its prompts | `caption_type` or `length_bonus` | `conversations` but for its last turn | that one, with both numbers |
| RLHF-V | `text`, JSON of three keys | its `question`; `image` or `image_path` | its `chosen`, `rejected` |
| HSA-DPO | the next, and `rejected_score` | `question`, and `<id>.jpg` | text; each score is its `severity` |
| RLAIF-V | `question`, `chosen`, `rejected` | `question`, `image` | text |
| HALVA | `…_answer_masked`, two of them | `question`, `image` | text; phrase i of both has the mark "i" |
| LLaVA-Hound | `video`, `chosen`, `rejected` | `prompt`, frames from the folder `video` | text |
| POVID | `rejected_conversations` | `conversations` but for its last turn | that, and the last of the others |
| LLaMA-Factory | `conversations`, `chosen`, `rejected` | `conversations`, `images` | a turn each |
| ms-swift | `messages` and `rejected_…` | `messages` but for its last turn, `images` | that, and see below |
| TRL, mDPO, STIC | `chosen`, `rejected` | `prompt`, or the first messages; pictures | text or messages |
| BPO | `completions[].score` | `prompt`, `image` | each with its score; its `type` is its name |
| VLFeedback | `completions[].annotations` | `prompt`, `img_path` | each; its score is the mean of three ratings |
| LVLM_NLF | `interaction` | `user`, `image_id` | `model`, one after the other; its score is `rating` |

ms-swift's other answer is `rejected_response`, a text or one message; or the end of `rejected_messages`; or the same
words about `rejected_images`. `margin` is a number of both answers.
LVLM_NLF is for training with feedback as a condition: the rating and the critique of an answer end the turn before it,
in words marked `feedback`; a refinement is the user's next turn.
Prompts that are no LLaVA conversation need not write `<image>`: their pictures stand before the first words then.

Sources: what TRL, LLaMA-Factory and ms-swift document; and cards, samples and loaders of the releases:
MMInstruction/VLFeedback, YangyiYY/LVLM_NLF, ShareGPTVideo/train_video_and_instruction, openbmb/RLHF-V-Dataset and
RLAIF-V-Dataset, luka-group/mDPO (data/sample_data.json), pritamqu/HALVA (llava/train/train_halva.py), yihedeng9/STIC
(stic/generate_pref.py), YiyangZhou/POVID and Mr-Loevan/HSA-DPO (train_dpo.py), llava-rlhf/LLaVA-RLHF,
pipilurj/bootstrapped-preference-optimization-BPO (data_generation/README.md).
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from quintet.answers import Answer
from quintet.data.sources.base import Faults
from quintet.data.sources.keys import unread
from quintet.data.sources.preference_rows import Path, Pictures, Row, Saying, Taking, Told, pair, said, two
from quintet.data.sources.preference_scores import bpo, lvlm_nlf, vlfeedback
from quintet.data.sources.root import Root
from quintet.data.sources.rows import parse
from quintet.errors import DataError
from quintet.values import Text

__all__ = ["FRAMES", "LAYOUTS", "SIDES", "Layout", "layout_of", "near"]

FRAMES = 8
"""Frames that are taken of a video, evenly: the middle ones of so many equal parts (LLaVA-Hound's `num_frames`)."""
FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")

_PHRASE = re.compile(r"<MASK>(.*?)</MASK>", re.DOTALL)
_VICUNA = re.compile(r"A chat between a curious \w+ and an artificial intelligence.*? USER: (.*?) ASSISTANT:\s*", re.S)
"""mDPO publishes prompts as Vicuna's template spells them; here every system has a template of its own."""


# ---- questions ---------------------------------------------------------------------------------------------------
def _llava_rlhf(at: Taking) -> Told:
    preferred = at.row.get("preference")
    if preferred not in (1, 2) or isinstance(preferred, bool):
        at.faults.add("bad-preference", f"`preference` is {preferred!a:.80}; it is 1 or 2", field="preference")
    answers: list[Saying] = []
    for n in (1, 2):
        key = f"output_{n}"
        turn = at.row[key]
        if not isinstance(turn, dict):
            raise DataError("wrong-type", f"`{key}` is an object with `value`, not {type(turn).__name__}", field=key)
        unread(turn, at.faults, known=frozenset({"from", "value"}), where=key)
        answers.append(said(turn.get("value"), f"{key}.value", answer=Answer(float(preferred == n))))
    return pair(at.turns("conversations"), *answers, shown=at.pictures())


def _llava_rlhf_prompts(at: Taking) -> Told:
    kinds = {"caption_type": (1, 7), "length_bonus": (0, 1e300)}
    numbers = {
        key: at.number(at.row[key], key, fault="bad-score", least=low, most=high)
        for key, (low, high) in kinds.items()
        if key in at.row
    }
    *before, last = at.turns("conversations")
    return Told((Path((*before, replace(last, answer=Answer(numbers=numbers))), at.pictures()),))


def _rlhf_v(at: Taking) -> Told:
    try:
        held = parse(at.row["text"])
    except DataError as error:
        raise error.at(field="text") from None
    if not isinstance(held, dict) or not {"question", "chosen", "rejected"} <= held.keys():
        raise DataError("missing-key", "`text` is JSON with question, chosen and rejected", field="text")
    unread(held, at.faults, known=frozenset({"question", "chosen", "rejected"}), where="text")
    return _asked(at, held, before="text.")


def _asked(at: Taking, held: Row, *, before: str = "", shown: Pictures | None = None) -> Told:
    """A question and two texts."""
    shown = at.pictures() if shown is None else shown
    question = said(shown.before(held["question"]), f"{before}question", by="human")
    answers = (said(held[name], before + name) for name in ("chosen", "rejected"))
    return pair([question], *answers, shown=shown)


def _rlaif_v(at: Taking) -> Told:
    return _asked(at, at.row)


def _hsa_dpo(at: Taking) -> Told:
    shown, name = at.pictures(), at.row.get("id")
    if not shown.names and isinstance(name, str | int):
        shown = Pictures((f"{name}.jpg",), ("id",), "id")
    told = _asked(at, at.row, shown=shown)
    paths = []
    for path, key in zip(told.paths, ("chosen_score", "rejected_score"), strict=True):
        *prompt, last = path.sayings
        if key in at.row:
            numbers = {"severity": at.number(at.row[key], key, fault="bad-score", least=0)}
            last = replace(last, answer=replace(last.answer or Answer(), numbers=numbers))
        paths.append(replace(path, sayings=(*prompt, last)))
    return replace(told, paths=tuple(paths))


# ---- marked phrases ----------------------------------------------------------------------------------------------
def _halva(at: Taking) -> Told:
    shown = at.pictures()
    answers: list[Saying] = []
    counts: list[int] = []
    for name in ("correct_answer", "hallucinated_answer"):
        key = f"{name}_masked"
        masked = at.row[key]
        if not isinstance(masked, str):
            raise DataError("wrong-type", f"`{key}` is text, not {type(masked).__name__}", field=key)
        plain = at.row.get(name, _PHRASE.sub(r"\1", masked))
        parts = _phrases(masked, plain, at.faults, key) if isinstance(plain, str) else ()
        counts.append(sum(part.mark is not None for part in parts))
        spoken = said(plain, name if name in at.row else key)
        answers.append(replace(spoken, marked=lambda _, parts=parts: parts))
    if all(counts) and counts[0] != counts[1]:
        message = f"{counts[0]} phrases in the correct answer and {counts[1]} in the altered one; they stand in pairs"
        at.faults.add("phrase-count", message, field="hallucinated_answer_masked")
    asked = said(shown.before(at.row.get("question")), "question", by="human")
    return pair([asked], *answers, shown=shown)


def _phrases(masked: str, plain: str, faults: Faults, key: str) -> tuple[Text, ...]:
    """The plain words in pieces, those that have tags marked "1", "2" …: blanks stand otherwise beside the tags."""
    pieces = _PHRASE.split(masked)
    lengths = [len("".join(piece.split())) for piece in pieces]
    if len(pieces) == 1 or 0 in lengths[1::2] or any("<MASK>" in piece or "</MASK>" in piece for piece in pieces):
        faults.add("bad-mark", "phrases stand between <MASK> and </MASK>: at least one, none empty", field=key)
        return ()
    places = [i for i, letter in enumerate(plain) if not letter.isspace()]
    if "".join(plain.split()) != "".join("".join(pieces).split()):
        faults.add("bad-mark", f"its words are not those of `{key.removesuffix('_masked')}`", field=key)
        return ()
    made: list[Text] = []
    at = done = 0
    for n, length in enumerate(lengths):
        if n % 2:
            start, stop = places[at], places[at + length - 1] + 1
            made += [Text(plain[done:start]), Text(plain[start:stop], mark=str(n // 2 + 1))]
            done = stop
        at += length
    return tuple(part for part in (*made, Text(plain[done:])) if part.text)


# ---- videos ------------------------------------------------------------------------------------------------------
def _llava_hound(at: Taking) -> Told:
    frames = _frames(at.root, at.row["video"])
    shown = Pictures(frames, ("video",) * len(frames), "video")
    words = at.row.get("prompt")
    if isinstance(words, str) and words.count("<video>") == 1:
        words = words.replace("<video>", "<image>" * len(frames))
    asked = said(shown.before(words), "prompt", by="human")
    return pair([asked], *(said(at.row[name], name) for name in ("chosen", "rejected")), shown=shown)


def _frames(root: Root, video: Any) -> tuple[str, ...]:
    """Pictures from the folder of a video, in the order of their names: 10 comes after 9."""
    if not isinstance(video, str):
        raise DataError("wrong-type", f"`video` is the name of a folder, not {type(video).__name__}", field="video")
    try:
        names = [name for name in os.listdir(root.path(video)) if name.lower().endswith(FRAME_ENDINGS)]
    except DataError as error:
        raise error.at(field="video") from None
    except OSError as error:
        message = f"{video!a:.80} is no folder of frames ({error.strerror}); unpack them there, or name the root"
        raise DataError("missing-file", message, field="video") from None
    if not names:
        message = f"{video!a:.80} holds no frame; expected names that end in {', '.join(FRAME_ENDINGS)}"
        raise DataError("no-frames", message, field="video")
    names.sort(key=lambda name: ([int(number) for number in re.findall(r"[0-9]{1,18}", name)], name))
    taken = min(FRAMES, len(names))
    return tuple(f"{video}/{names[(2 * n + 1) * len(names) // (2 * taken)]}" for n in range(taken))


# ---- conversations -----------------------------------------------------------------------------------------------
def _povid(at: Taking) -> Told:
    return two(at.turns("conversations"), at.turns("rejected_conversations"), shown=at.pictures())


def _llama_factory(at: Taking) -> Told:
    answers = (Saying(at.row[name], name) for name in ("chosen", "rejected"))
    return pair(at.turns("conversations"), *answers, shown=at.pictures())


def _ms_swift(at: Taking) -> Told:
    shown, chosen = at.pictures("images", "image"), at.turns("messages")
    other = at.pictures("rejected_images") if "rejected_images" in at.row else shown
    response = at.row.get("rejected_response")
    if "rejected_messages" in at.row:
        rejected = at.turns("rejected_messages")
    elif isinstance(response, list):
        if len(response) != 1:
            message = f"`rejected_response` is a text or one message, not {len(response)} of them"
            raise DataError("wrong-type", message, field="rejected_response")
        rejected = (*chosen[:-1], *at.turns("rejected_response"))
    elif response is not None:
        rejected = (*chosen[:-1], _message("assistant", response, "rejected_response"))
    else:
        rejected = chosen
    numbers = {"margin": at.number(at.row["margin"], "margin", fault="bad-score")} if "margin" in at.row else {}
    sides = (
        (*turns[:-1], replace(turns[-1], answer=Answer(score, numbers=numbers)))
        for turns, score in ((chosen, 1.0), (rejected, 0.0))
    )
    return two(*sides, shown=shown, other=other, dialect="messages")


def _trl(at: Taking) -> Told:
    shown, asked = at.pictures(), _prompt(at)
    sides: list[tuple[Saying, ...]] = []
    for name in ("chosen", "rejected"):
        value = at.row[name]
        turns = at.turns(name) if isinstance(value, list) else (_message("assistant", value, name),)
        if len(turns) == 1:
            turns = (*asked, *turns)
        elif asked and _content(asked[-1]) != _content(turns[-2]):
            message = f"`prompt` and the beginning of `{name}` ask different things; give one of them"
            at.faults.add("two-prompts", message, field="prompt")
        if len(turns) == 1:
            raise DataError(
                "missing-key", f"there is no `prompt`, and `{name}` does not begin with one", field="prompt"
            )
        sides.append((*_opened(turns[:-1], shown), turns[-1]))
    return two(*sides, shown=shown, dialect="messages")


def _prompt(at: Taking) -> tuple[Saying, ...]:
    prompt = at.row.get("prompt")
    if prompt is None:
        return ()
    if isinstance(prompt, list):
        return at.turns("prompt")
    if isinstance(prompt, str) and (spelt := _VICUNA.fullmatch(prompt)):
        prompt = spelt[1]
        if " ASSISTANT:" in prompt:
            message = "a whole conversation as Vicuna's template spells it; give its turns as messages"
            at.faults.add("rendered-prompt", message, field="prompt")
    return (_message("user", prompt, "prompt"),)


def _message(role: str, words: Any, field: str) -> Saying:
    return Saying({"role": role, "content": words}, field, bare=True)


def _content(saying: Saying) -> Any:
    return saying.turn.get("content") if isinstance(saying.turn, dict) else None


def _opened(prompt: tuple[Saying, ...], shown: Pictures) -> tuple[Saying, ...]:
    """The prompt with its pictures before the user's first words, if it does not say where they stand."""
    contents = [_content(saying) for saying in prompt]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    words = [*(part.get("text") for part in parts), *contents]
    if any(isinstance(each, str) and "<image>" in each for each in words):
        return prompt
    if any(part.get("type") in ("image", "image_url") for part in parts):
        return prompt
    for n, (saying, content) in enumerate(zip(prompt, contents, strict=True)):
        if isinstance(saying.turn, dict) and saying.turn.get("role") == "user":
            places = [{"type": "text", "text": "<image>"}] * len(shown.names)
            content = [*places, *content] if isinstance(content, list) else shown.before(content)
            opened = replace(saying, turn={**saying.turn, "content": content})
            return (*prompt[:n], opened, *prompt[n + 1 :])
    return prompt


# ---- which is which ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layout:
    """How a layout is told and read."""

    needs: frozenset[str]
    take: Callable[[Taking], Told]
    keys: frozenset[str] = frozenset()
    """Further keys that are read."""
    notes: frozenset[str] = frozenset()
    """Keys that are known to say nothing that is learnt."""
    fits: Callable[[Row], bool] = lambda row: True
    """What must hold besides."""

    @property
    def known(self) -> frozenset[str]:
        return self.needs | self.keys | {"id", "system"}


def _keys(*names: str) -> frozenset[str]:
    return frozenset(names)


def _scored(row: Row) -> bool:
    """Whether the completions have scores, in a list of objects or in an object of lists."""
    held = row["completions"]
    return any(isinstance(one, dict) and "score" in one for one in (held if isinstance(held, list) else [held]))


_IMAGE = _keys("image", "images", "img_path", "image_path")
_ORIGIN = _keys("ds_name", "origin_dataset", "origin_split")
_CHOICE = _keys("chosen", "rejected")
_SCORES = _keys("chosen_score", "rejected_score", "score_chosen", "score_rejected")
_REJECTED = _keys("rejected_response", "rejected_messages", "rejected_images")
_PROMPTED = _keys("caption_type", "length_bonus")
_MASKED = _keys("correct_answer_masked", "hallucinated_answer_masked")

SIDES = _CHOICE | _REJECTED | {"rejected_conversations"}
"""A row that has one of these compares, or lacks what it should be compared with."""

LAYOUTS: Mapping[str, Layout] = {
    "llava-rlhf": Layout(
        _keys("output_1", "output_2"), _llava_rlhf, _IMAGE | {"conversations", "preference"}, _keys("hallucination")
    ),
    "llava-rlhf-prompts": Layout(
        _keys("conversations"), _llava_rlhf_prompts, _IMAGE | _PROMPTED, fits=lambda row: bool(row.keys() & _PROMPTED)
    ),
    "rlhf-v": Layout(
        _keys("text"), _rlhf_v, _IMAGE, _ORIGIN,
        lambda row: isinstance(row["text"], str) and bool(re.match(r'\s*\{.*"(chosen|rejected)"', row["text"], re.S)),
    ),
    "halva": Layout(
        _MASKED, _halva, _IMAGE | {"question", "correct_answer", "hallucinated_answer"}, _keys("tag", "raw_answer")
    ),
    "hsa-dpo": Layout(_CHOICE | {"question", "rejected_score"}, _hsa_dpo, _IMAGE | {"chosen_score"}),
    "rlaif-v": Layout(_CHOICE | {"question"}, _rlaif_v, _IMAGE, _ORIGIN),
    "llava-hound": Layout(
        _CHOICE | {"video"}, _llava_hound, _keys("prompt"), _SCORES | {"answer"}
    ),
    "povid": Layout(_keys("conversations", "rejected_conversations"), _povid, _IMAGE),
    "llama-factory": Layout(_CHOICE | {"conversations"}, _llama_factory, _IMAGE),
    "ms-swift": Layout(
        _keys("messages"), _ms_swift, _REJECTED | {"image", "images", "margin"},
        fits=lambda row: bool(row.keys() & _REJECTED),
    ),
    "trl": Layout(_CHOICE, _trl, _IMAGE | {"prompt"}, _SCORES | {"image_corruption", "hallu_prompt"}),
    "bpo": Layout(_keys("completions"), bpo, _IMAGE | {"prompt"}, fits=_scored),
    "vlfeedback": Layout(_keys("completions"), vlfeedback, _IMAGE | {"prompt"}, _keys("models")),
    "lvlm-nlf": Layout(_keys("interaction"), lvlm_nlf, _keys("image_id"), _keys("caption")),
}  # fmt: skip
"""The first that fits a row is its layout."""


def layout_of(row: Row) -> str:
    """The layout of a row, a key of `LAYOUTS`; '' if it compares nothing. A key without a value counts as absent."""
    row = {key: value for key, value in row.items() if value is not None}
    return next((name for name, layout in LAYOUTS.items() if layout.needs <= row.keys() and layout.fits(row)), "")


def near(keys: Set[str]) -> str:
    """The layouts that lack one key of those they are told by, the likeliest first; '' if there is none.

    >>> near({"question", "chosen", "image"})
    'rlaif-v (lacks rejected), trl (lacks rejected)'
    >>> near({"prompt", "chosen", "rejectd"})
    "trl (lacks rejected, has 'rejectd')"
    """
    lacking = {name: sorted(layout.needs - keys) for name, layout in LAYOUTS.items() if layout.needs & keys}
    one = [name for name, lacks in lacking.items() if len(lacks) == 1]
    one.sort(key=lambda name: -len(LAYOUTS[name].needs))
    told = []
    for name in one[:3]:
        [lacks] = lacking[name]
        alike = difflib.get_close_matches(lacks, sorted(keys - LAYOUTS[name].known), n=1)
        told.append(f"{name} (lacks {lacks}{f', has {alike[0]!a}' if alike else ''})")
    return ", ".join(told)
