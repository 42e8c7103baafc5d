"""What the benchmarks train: a LLaVA of 3.45 M random weights; and the rows of mixed lengths that `sft.py` reads.

The model is transformers' own class, saved by transformers and imported by us. The rows are LLaVA JSON with PNG files.
The reference gets ids, labels and order from our own `Tokens`, so that both sides see the same to the last token.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

StageName = Literal["sft", "align"]

SIDE, PATCH = 64, 8
"""Pixels."""
PICTURE = (SIDE // PATCH) ** 2
"""Tokens a picture takes."""
VOCAB, IMAGE, PAD = 2048, 3, 2
TEXT = {"sft": (16, 200), "align": (8, 96)}
"""Least and most tokens of text beside the picture's 64. Conversations: evenly spread; captions: most are short."""
SHAPE: dict[str, dict[str, int]] = {
    "vision": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
    },
    "text": {
        "vocab_size": VOCAB,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 2048,
    },
}


@dataclass(frozen=True)
class Material:
    """A folder with everything that both sides read."""

    folder: Path

    @property
    def model(self) -> Path:
        """The published model, as transformers saves it."""
        return self.folder / "model"

    def rows(self, stage: StageName) -> Path:
        """LLaVA JSON."""
        return self.folder / f"{stage}.json"

    def reference(self, stage: StageName) -> Path:
        """The same rows in the order of training, as ids and labels."""
        return self.folder / f"{stage}.reference.json"


# ---- making it ---------------------------------------------------------------------------------------------------
def make_material(material: Material, *, rows: int, seed: int = 0) -> None:
    """Writes the model, its tokenizer, the pictures, and a file of rows for each stage."""
    write_model(material.model, seed=seed)
    chance = random.Random(seed)
    write_pictures(material.folder, rows, chance)
    for stage in ("sft", "align"):
        made = [_row(stage, number, chance) for number in range(rows)]
        material.rows(stage).write_text(json.dumps(made), encoding="utf-8")


def write_model(folder: Path, *, side: int = SIDE, seed: int = 0) -> None:
    """Writes the published model and how it prepares pictures, of `side` pixels."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SHAPE["vision"] | {"image_size": side}),
        text_config=LlamaConfig(**SHAPE["text"], pad_token_id=PAD),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        image_seq_length=(side // PATCH) ** 2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True
    ).save_pretrained(folder)


def write_pictures(folder: Path, count: int, chance: random.Random, *, side: int = SIDE) -> None:
    """Writes `pictures/N.png`, each a picture of its own: 8 × 8 colours, smoothly between them."""
    from PIL import Image

    (folder / "pictures").mkdir()
    for number in range(count):
        colours = Image.frombytes("RGB", (8, 8), chance.randbytes(192))
        colours.resize((side, side), Image.Resampling.BICUBIC).save(folder / "pictures" / f"{number}.png")


def words(chance: random.Random, n: int) -> str:
    """So many words, a token each."""
    return " ".join(f"w{chance.randrange(VOCAB - 6)}" for _ in range(n))


def _row(stage: StageName, number: int, chance: random.Random) -> dict[str, Any]:
    """A row whose text takes a random number of tokens, template included."""
    least, most = TEXT[stage]
    if stage == "align":
        # Skewed as captions are: a mean of 24, few of more than 60.
        length = min(most, least + int(chance.expovariate(1 / 16)))
        turns = [("human", "<image>"), ("gpt", words(chance, length - 2))]
    else:
        turns, left = [], chance.randint(least, most) - 1
        while left:
            # A turn takes "USER:", "ASSISTANT:", the end marker, a question and an answer; the last takes what is left.
            asked, told = chance.randint(3, 14), chance.randint(4, 40)
            if left - 3 - asked - told < 20:
                asked = min(asked, (left - 3) // 3)
                told = left - 3 - asked
            turns += [
                ("human", ("<image>\n" if not turns else "") + words(chance, asked)),
                ("gpt", words(chance, told)),
            ]
            left -= 3 + asked + told
    spoken = [{"from": who, "value": words} for who, words in turns]
    return {"id": str(number), "image": f"pictures/{number}.png", "conversations": spoken}


def word_level() -> Any:
    """The tokenizer: a token for each word between blanks."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    names = ["<s>", "</s>", "<pad>", "<image>", "USER:", "ASSISTANT:", *(f"w{i}" for i in range(VOCAB - 6))]
    backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


# ---- reading it on our side --------------------------------------------------------------------------------------
def tokenizer() -> Any:
    """A token a word, so that lengths are what they are meant to be."""
    from quintet.data.tokenizer import Tokenizer

    return Tokenizer(word_level(), bos="<s>", eos="</s>", pad="<pad>")


def talk() -> Any:
    """How conversations are spelt: `USER: … ASSISTANT: … </s>`."""
    from quintet.data.template import Frame, Template

    return Template(
        name="talk", user=Frame(before="USER: ", after=" "), assistant="ASSISTANT:", end="</s>", place="front"
    )


def make_stage(name: StageName, *, batch: int, steps: int, row: int, micro: int) -> Any:
    """LLaVA-1.5's stages: captions teach the connector alone, conversations the connector and the LLM."""
    from quintet.data.template import Template
    from quintet.training.stage import Data, Rate, Stage

    rate = Rate(lr=2e-4)
    plain = Template(name="plain", answer="", end="</s>", joint="", questions=False)
    return Stage(
        name=name,
        data=Data(name="made up", kind="captions" if name == "align" else "instructions"),
        template=plain if name == "align" else talk(),
        train={"connectors": rate} if name == "align" else {"connectors": rate, "llm": rate},
        batch=batch,
        steps=steps,
        warmup=0.0,
        schedule="constant",
        row=row,
        micro=micro,
    )


def write_reference(material: Material, stage: Any, *, seed: int) -> list[dict[str, int]]:
    """Writes what the reference reads, made of our `Tokens` in the order of our steps; returns the facts of each step.

    A picture's columns carry its token, and what is not learnt the label -100.
    """
    from quintet.data.pipeline import Plan, Planner, measure_with
    from quintet.data.sources import open_source
    from quintet.model.convert import import_model

    config = import_model(material.model)[0].config
    measure = measure_with({"image": config.spec("image")}, config.columns)
    plan = Plan(batch=stage.batch, steps=stage.steps, row=stage.row, micro=stage.micro, seed=seed)
    planner = Planner(open_source(material.rows(stage.name)), stage.template, tokenizer(), measure, plan)
    rows, facts = [], []
    for step in range(stage.steps):
        made = [planner.tokens(planner.index(n)) for n in range(step * stage.batch, (step + 1) * stage.batch)]
        for t in made:
            assert not (set(t.ids.tolist()) & {PAD, IMAGE} - {PAD}), "an id of the text is a control token"
            (item,) = t.items
            ids, labels = t.ids.tolist(), t.ids.where(t.weight > 0, -100).tolist()
            assert t.parent.tolist() == list(range(-1, len(t) - 1)), "a conversation is one path"
            ids[item.start : item.start + item.columns] = [IMAGE] * item.columns
            rows.append({"ids": ids, "labels": labels, "image": str(item.ref.path)})
        lengths = [len(t) for t in made]
        facts.append(
            {
                "tokens": sum(lengths),
                "targets": int(sum(t.count for t in made)),
                "pairs": sum(n * (n + 1) // 2 for n in lengths),
                "padded": stage.batch * max(lengths),
            }
        )
    material.reference(stage.name).write_text(json.dumps(rows), encoding="utf-8")
    return facts
