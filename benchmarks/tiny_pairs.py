"""What `dpo.py` trains on: pairs of answers to a question about a picture, on disk, and as TRL reads them.

Ours reads RLAIF-V's layout. TRL gets the same pairs in the order of our steps, as the texts of our `Tokens`: a word is
a token, so both sides see the same to the last token.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tiny_llava import IMAGE, PATCH, talk, tokenizer, word_level, words, write_model, write_pictures

TrainName = Literal["full", "lora"]

QUESTION, ANSWER = (8, 32), (8, 100)
"""Least and most tokens, evenly spread; an answer's length says nothing about that of the other."""
RANK, ALPHA = 16, 32.0
LINEAR = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""The layers of transformers' model that adapters stand on: every linear one of the LLM but the head."""
RATE, BETA = 1e-5, 0.1


@dataclass(frozen=True)
class Pairs:
    """A folder with everything that both sides read; pictures of `side` pixels."""

    folder: Path
    side: int

    @property
    def model(self) -> Path:
        """The published model with its processor, as transformers saves them."""
        return self.folder / "model"

    @property
    def rows(self) -> Path:
        """The pairs in RLAIF-V's layout."""
        return self.folder / "pairs.json"

    @property
    def reference(self) -> Path:
        """The same pairs in the order of training, as texts."""
        return self.folder / "pairs.reference.json"

    @property
    def adapter(self) -> Path:
        """What our adapters begin with, as peft saves it."""
        return self.folder / "adapter"

    @property
    def columns(self) -> int:
        """Tokens that a picture takes."""
        return (self.side // PATCH) ** 2


def make_pairs(pairs: Pairs, *, rows: int, seed: int = 0) -> None:
    """Writes the model, its processor, the pictures and the pairs."""
    write_model(pairs.model, side=pairs.side, seed=seed)
    _write_processor(pairs.model)
    chance = random.Random(seed)
    write_pictures(pairs.folder, rows, chance, side=pairs.side)
    made = [
        {
            "image": f"pictures/{number}.png",
            "question": words(chance, chance.randint(*QUESTION)),
            "chosen": words(chance, chance.randint(*ANSWER)),
            "rejected": words(chance, chance.randint(*ANSWER)),
        }
        for number in range(rows)
    ]
    pairs.rows.write_text(json.dumps(made), encoding="utf-8")


def _write_processor(folder: Path) -> None:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    spoken = PreTrainedTokenizerFast(
        tokenizer_object=word_level(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(folder),
        spoken,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def make_stage(train: TrainName, *, batch: int, steps: int, row: int, micro: int) -> Any:
    """DPO with β 0.1, of the connector and the LLM, or of adapters on the LLM."""
    from quintet.components.lora import Lora
    from quintet.training.objectives.preference import Preference
    from quintet.training.stage import Data, Rate, Stage

    own, adapters = Rate(lr=RATE), Rate(lr=RATE, lora=Lora(rank=RANK, alpha=ALPHA))
    return Stage(
        name="dpo",
        data=Data(name="made up", kind="preferences"),
        template=talk(),
        train={"llm": adapters} if train == "lora" else {"connectors": own, "llm": own},
        batch=batch,
        steps=steps,
        warmup=0.0,
        schedule="constant",
        objective="preference",
        preference=Preference(beta=BETA),
        row=row,
        micro=micro,
    )


def write_reference(pairs: Pairs, stage: Any, *, seed: int) -> list[dict[str, int]]:
    """Writes what TRL reads, made of our `Tokens` in the order of our steps; returns the facts of each step."""
    from quintet.data.sources import open_source
    from quintet.model.convert import import_model
    from quintet.training.planning import planner

    model, _ = import_model(pairs.model)
    reader = tokenizer()
    plans = planner(model, stage, open_source(pairs.rows), reader, seed=seed)
    names = {number: word for word, number in word_level().get_vocab().items()}
    rows, facts = [], []
    for step in range(stage.steps):
        made = [plans.tokens(n) for n in range(step * stage.batch, (step + 1) * stage.batch)]
        texts = [_texts(tokens, names, pairs.columns) for tokens in made]
        rows += texts
        paths = [
            len(row["prompt"].split()) - 1 + pairs.columns + len(row[answer].split())
            for row in texts
            for answer in ("chosen", "rejected")
        ]
        facts.append({"tree": sum(map(len, made)), "paths": sum(paths), "padded": len(paths) * max(paths)})
    pairs.reference.write_text(json.dumps(rows), encoding="utf-8")
    return facts


def _texts(tokens: Any, names: dict[int, str], columns: int) -> dict[str, str]:
    """A pair as TRL reads it: what both answers follow, and each answer with its end marker."""
    (item,), (root, *branches) = tokens.items, sorted(set(tokens.enter.tolist()))
    assert (item.columns, len(branches)) == (columns, 2), "one picture, two answers"
    ids = tokens.ids.tolist()
    shown = range(item.start, item.start + columns)
    learnt = (tokens.weight != 0).tolist()
    paths = {}
    for node in branches:
        name = "chosen" if dict(tokens.answers)[node].score else "rejected"
        path = [t for t, enter in enumerate(tokens.enter.tolist()) if enter in (root, node)]
        asked = [t for t in path if not learnt[t] and t not in shown[1:]]
        prompt = " ".join("<image>" if t in shown else names[ids[t]] for t in asked)
        assert paths.setdefault("prompt", prompt) == prompt, "both answers follow the same words"
        paths[name] = " ".join(names[ids[t]] for t in path if learnt[t])
    assert not {IMAGE} & {ids[t] for t in range(len(ids)) if t not in shown}, "a word is a control token"
    return paths | {"image": str(item.ref.path)}
