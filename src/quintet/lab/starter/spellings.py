"""The starter LLM's last lesson: the same scenes, asked in the spellings of many systems.

A published LLM has read `### Instruction:`, `Question: … Answer:` and `Human:` before a recipe freezes it; one that has
read only `USER: … ASSISTANT:` cannot answer there, whatever a connector shows it. So a scene, told in words where a
picture would stand, is asked about through the recipes' own templates: those that add no tokens, whose rows a recipe
trains itself. Pages of several scenes with their captions, and scenes asked about one after the other, are what
interleaved data and few-shot contexts will be.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from quintet.data.columns import Measure
from quintet.data.processor import Processor
from quintet.data.scenes import World, caption, conversation, pretrain
from quintet.data.scenes import sample_scene as draw
from quintet.data.scenes.pages import Shown, documents
from quintet.data.scenes.world import Scene
from quintet.data.template import Template
from quintet.data.tokenizer import Tokenizer
from quintet.errors import DataError
from quintet.lab.starter.text import SPELT, TextScenes, spelt, told_in
from quintet.model.mllm import MLLM
from quintet.recipes._templates import (
    ALPACA,
    COGVLM_CHAT,
    COGVLM_VQA,
    FROZEN_VQA,
    INTERLEAVED,
    LLAVA_V0,
    MINIGPT_V2,
    PLAIN,
    PLAIN_EOS,
    VICUNA_V1,
)
from quintet.recipes._templates_feature import FLAMINGO, MULTIMODAL_GPT, OPEN_FLAMINGO
from quintet.recipes._templates_query import (
    BLIP2_OPT,
    BLIP2_OPT_CAPTION,
    INSTRUCTBLIP,
    LYNX,
    MINIGPT4,
    MINIGPT4_CHAT,
    MPLUG_OWL,
)
from quintet.recipes.lavin import CHAT as LAVIN
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Origin, Part, Ref, Sample, Text, Tokens, Turn

__all__ = ["SPELLINGS", "Spellings", "SpeltScenes", "spelling_scores"]

CHATS = (
    VICUNA_V1, VICUNA_V1, LLAVA_V0, LLAVA_V0, MINIGPT4, MINIGPT4_CHAT, MINIGPT_V2, MPLUG_OWL, INSTRUCTBLIP, LYNX,
    FROZEN_VQA, BLIP2_OPT, COGVLM_VQA, COGVLM_CHAT, ALPACA, ALPACA, LAVIN, LAVIN, MULTIMODAL_GPT,
    *(replace(each, end="</s>", added=()) for each in (FLAMINGO, OPEN_FLAMINGO)),
)  # fmt: skip
"""Alpaca's answers and those like them begin without a space, so in letters: they are told more often."""
CAPTIONS = (PLAIN, PLAIN_EOS, BLIP2_OPT_CAPTION)


@dataclass(frozen=True, kw_only=True)
class Spellings(Template):
    """A template for samples of `SpeltScenes`: the name of each one's own template is its id."""

    def tokens(self, sample: Sample, tokenizer: Tokenizer, measure: Measure, *, open: bool = False) -> Tokens:
        """As the sample's own template spells it."""
        known = {template.name: template for template in (*CHATS, *CAPTIONS, INTERLEAVED, SPELT)}
        if sample.origin.id not in known:
            raise DataError("unknown-template", f"no template {sample.origin.id!r}; there are {', '.join(known)}")
        return known[sample.origin.id].tokens(sample, tokenizer, measure, open=open)


SPELLINGS = Spellings(name="spellings", end=VICUNA_V1.end)


class SpeltScenes:
    """A random-access source of `n` samples; `seed` and the number decide each. To be spelt with `SPELLINGS`.

    Of twelve samples six are conversations about one scene, one is a caption, one several scenes with a question each,
    two are pages, and two are what was read before, so that it is not forgotten.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        most: tuple[int, ...] = (4,),
        forms: tuple[float, float, float] = (0.3, 0.55, 0.15),
        split: str = "train",
    ) -> None:
        self.n, self.seed, self.most, self.forms, self.split = n, seed, most, forms, split
        self.name = f"scenes-spelt-{split}"
        self.known = TextScenes(n, seed=seed, split=split, most=most, forms=forms, notes=0.25)

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int) -> Sample:
        """One sample; its origin's id names the template."""
        rng = random.Random(f"spelt/{self.seed}/{self.split}/{index}")
        kind = rng.choices(("chat", "caption", "shots", "page", "known"), (6, 1, 1, 2, 2))[0]
        if kind == "known":
            return replace(self.known.sample(index), origin=Origin(self.name, index + 1, SPELT.name))
        if kind == "page":
            template, turns = INTERLEAVED, (self._page(rng),)
        elif kind == "caption":
            template = rng.choice(CAPTIONS)
            scene, shown, _ = self._scene(rng)
            turns = (Turn("user", (shown,)), Turn("assistant", (Text(pretrain(scene, rng)[1]),)))
        else:
            template = rng.choice(CHATS)
            turns = tuple(self._chat(template, rng, shots=kind == "shots"))
        return Sample(Node(turns), Origin(self.name, index + 1, template.name))

    def question(self, index: int, template: Template) -> tuple[Sample, str]:
        """A scene and a question about it, without boxes, and the answer."""
        rng = random.Random(f"spelt/{self.seed}/{self.split}/{index}")
        scene, shown, _ = self._scene(rng)
        question, answer, _ = spelt(rng.choice(conversation(scene, rng, 10, captions=0.0, boxes=0.0)), template.regions)
        return Sample(Node((Turn("user", (shown, Text(question))),))), answer

    def _chat(self, template: Template, rng: random.Random, *, shots: bool) -> Iterator[Turn]:
        """Questions about one scene, or each about another."""
        scene, told, exact = self._scene(rng)
        for number in range(rng.randint(2, 4) if shots else rng.randint(1, 3)):
            if number and shots:
                scene, told, exact = self._scene(rng)
            shown: tuple[Part, ...] = (told,) if shots or not number else ()
            asked = rng.choice(conversation(scene, rng, 10, captions=0.2, boxes=0.7 if exact else 0.0))
            question, answer, weight = spelt(asked, template.regions)
            yield Turn("user", (*shown, Text(question)))
            yield Turn("assistant", (Text(answer, weight=weight),))

    def _page(self, rng: random.Random) -> Turn:
        """An album, a quiz, or made-up names, as documents of pictures are (`data/scenes/pages.py`)."""
        scenes: dict[str, Scene] = {}
        shown: list[Shown] = []
        for number in range(12):
            scene = draw(World(max_objects=1 if number % 2 else rng.choice(self.most)), rng, self.split)
            scenes[str(number)] = scene
            said = caption(scene, rng, rng.choice(("short", "long")))
            shown.append(Shown(str(number), scene, said, conversation(scene, rng, 4, captions=0.0, boxes=0.0)))
        page = documents(shown, rng)[0]
        before = {info["matched_text_index"]: scenes[info["image_name"]] for info in page["image_info"]}
        parts: list[Part] = []
        for number, sentence in enumerate(page["text_list"]):
            if number in before:
                parts.append(self._shown(before[number], rng)[0])
            parts.append(Text(sentence if number in before or not parts else f" {sentence}"))
        return Turn("document", tuple(parts))

    def _scene(self, rng: random.Random) -> tuple[Scene, Media, bool]:
        """A scene, what is told of it where its picture would stand, and whether that says exactly where things are."""
        scene = draw(World(max_objects=rng.choice(self.most)), rng, self.split)
        return scene, *self._shown(scene, rng)

    def _shown(self, scene: Scene, rng: random.Random) -> tuple[Media, bool]:
        form = rng.choices(("map", "things", "words"), self.forms)[0]
        return Media("image", Ref("told"), told_in(scene, form, rng)), form != "words"


def spelling_scores(model: MLLM, tokenizer: Tokenizer, *, n: int, seed: int = 9) -> dict[str, float]:
    """Share of questions about `n` held-out scenes that are answered exactly, by the template they are asked in."""
    source = SpeltScenes(n, seed=seed, split="val", forms=(0.5, 0.5, 0.0))
    scores: dict[str, float] = {}
    for name, template in {each.name: each for each in CHATS}.items():
        engine = Engine(model, Processor(tokenizer, template, model.config))
        asked = [source.question(i, template) for i in range(n)]
        said = engine.answer([sample for sample, _ in asked])
        scores[name] = sum(a == truth for a, (_, truth) in zip(said, asked, strict=True)) / n
    return scores
