"""What the papers say of each recipe, typed by hand and not from the code: stages, what trains, rates, amounts.

A recipe's line has the pictures' side in pixels and which features of the encoder are taken: the hidden state, `patch`
(no class token), `full` or `cls`, and `norm` where the encoder's last norm is applied. A stage's line has what trains
and its peak rate, samples in a step, epochs or steps, and the kind of rows (how many of them are text alone, where the
paper makes a point of it) with words of the data set's name. What the sources leave open, or where a recipe leaves
them, is marked with ~; `REASONS` has words of its docstring that say so.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from quintet.components.encoders.presets import CLIP_L
from quintet.components.encoders.vision import Vision
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.recipes._recipe import Recipe
from quintet.training.stage import Rate, Stage

TABLE = """
blip2: 224 px, layer -1, full
  align | connectors.image.qformer 1e-4, connectors.image.captions 1e-4 | 1680 | 250000 steps | captions: blip 129m
  generative | connectors.image.qformer 1e-4, connectors.image.project 1e-4 | 1920 | 80000 steps | captions: blip 129m
captioner: no encoder
  instruct | ~llm 2e-5 | ~128 | ~1 epoch | ~instructions: llava mix665k
chatspot: ~224 px, ~layer -2, ~patch
  align | connectors 2e-3 | 128 | 3 epochs | captions: mgvlid image
  refer | connectors 2e-5, llm 2e-5 | 128 | 3 epochs | regions: mgvlid region
cogvlm: 490 px, layer -1, patch
  pretrain-captions | connectors 1e-4, fusion 1e-4 | 8192 | 120000 steps | captions: laion-2b coyo-700m
  pretrain-grounding | connectors 1e-5, fusion 1e-5 | 1024 | 60000 steps | ~instructions: 40m grounded
  instruct | connectors 1e-5, fusion 1e-5, encoders 1e-6 | 1024 | 6000 steps | instructions: cogvlm sft
dlp: 224 px, layer -1, full
  prompts | fusion 1e-4 | ~1024 | 5 epochs | captions: laion sentences 12m
  align | connectors 1e-4 | ~1024 | 10 epochs | captions: coco vg 4m
  generative | connectors.image.qformer 1e-4, connectors.image.project 1e-4 | ~1024 | 10 epochs | captions: coco vg 4m
ferret: 336 px, layer -2, patch
  grit | connectors 2e-5, regions 2e-5, llm 2e-5 | 128 | 3 epochs | regions: grit
flamingo: 320 px, layer -1, patch
  pretrain | connectors 1e-4, fusion 1e-4, tokens 1e-4 | ~2048 | ~500000 steps | interleaved: m3w align ltip vtp
  finetune | ~connectors 1e-5, ~fusion 1e-5, ~tokens 1e-5 | ~128 | ~1 epoch | ~instructions: vqav2
frozen_lm: 224 px
  captions | encoders 3e-4, connectors 3e-4 | 128 | 1 epoch | captions: cc3m
fuyu: 1080 × 1920 px
  pretrain | ~connectors 2e-5, ~llm 2e-5 | ~128 | ~1 epoch | ~captions: unpublished
  instruct | ~connectors 2e-5, ~llm 2e-5 | ~128 | ~1 epoch | ~instructions: unpublished
idefics: 224 px, layer -1, full
  pretrain | connectors 1e-5, fusion 1e-5, tokens 1e-5 | ~1280 | 65000 steps | interleaved: obelics laion wikipedia pmd
  instruct | encoders 1e-5, connectors 1e-5, fusion 1e-5, llm 1e-5 | ~100 | 22000 steps |
    instructions (29 % text): idefics
instructblip: 224 px, layer -1, full
  blip2 | connectors 1e-4 | 1920 | 80000 steps | captions: blip 129m
  instruct | connectors.image.qformer 1e-5 | 128 | 60000 steps | instructions: 13 held-in
kosmos1: 224 px, layer -1, ~full, norm
  pretrain | encoders (upper 1/24 of the layers) 2e-4, connectors 2e-4, llm 2e-4 | 6528 | 300000 steps | interleaved
  instruct | encoders (upper 1/24 of the layers) 2e-5, connectors 2e-5, llm 2e-5 | 1072 | 10000 steps |
    ~captions (27 % text)
kosmos2: 224 px, layer -1, full, norm
  pretrain | encoders 2e-4, connectors 2e-4, llm 2e-4 | ~4000 | 60000 steps | captions: grit
  instruct | encoders ~2e-5, connectors ~2e-5, llm ~2e-5 | ~1072 | ~10000 steps | regions: llava unnatural flan grit
lavin: 224 px, layer 4 8 12 16 20 24, cls
  instruct | encoders.image.adapters 9e-3, connectors 9e-3, fusion 9e-3 | 32 | 15 epochs |
    instructions (25 % text): alpaca llava
llama_adapter: 224 px, layer ~6 12 18 24, cls
  instruct | connectors 9e-3, fusion 9e-3 | 64 | 5 epochs | instructions: scienceqa
llama_adapter_v2: 224 px, layer -1, full, norm
  captions | connectors 1e-4, fusion.early 1e-4 | 32 | ~1 epoch | captions: coco captions
  instruct | ~fusion.prompts 1e-3, fusion.tuning 1e-3 | 32 | 4 epochs | text: gpt-4-llm 52k
llava: 224 px, layer -2, patch
  align | connectors 2e-3 | 128 | 1 epoch | captions: cc3m 595k
  instruct | connectors 2e-5, llm 2e-5 | 32 | 3 epochs | instructions: llava 158k
llava15: 336 px, layer -2, patch
  pretrain | connectors 1e-3 | 256 | 1 epoch | captions: lcs 558k
  instruct | connectors 2e-5, llm 2e-5 | 128 | 1 epoch | instructions: mix665k
llava_next: 336 px, layer -2, patch
  pretrain | connectors 1e-3 | 256 | 1 epoch | captions: 558k
  instruct | encoders 2e-6, connectors 2e-5, llm 2e-5 | 128 | 1 epoch | instructions: 760k
lynx: 420 px, layer -1, full
  pretrain | connectors 1e-4, fusion 1e-4 | ~1536 | 100000 steps | captions: 120m
  enlarge | connectors 1e-5, fusion 1e-5 | ~1536 | 10000 steps | captions: 120m
  instruct | connectors 2e-5, fusion 2e-5 | ~768 | 20000 steps | instructions: 50 tasks
minigpt4: 224 px, layer -1, full
  blip2 | connectors.image.qformer 1e-4, connectors.image.project 1e-4 | 1920 | 80000 steps | captions: blip 129m
  pretrain | connectors.image.project 1e-4 | 256 | 20000 steps | captions: laion cc sbu
  finetune | connectors.image.project 3e-5 | 12 | 400 steps | instructions: cc_sbu_align
minigpt_v2: 448 px, layer -1, patch, norm
  broad | connectors 1e-4, llm (LoRA of rank 64) 1e-4 | 96 | 400000 steps | ~captions: weakly
  fine-grained | connectors 1e-5, llm (LoRA of rank 64) 1e-5 | 64 | 50000 steps | instructions: fine-grained
  instruct | connectors 1e-5, llm (LoRA of rank 64) 1e-5 | 24 | 35000 steps | instructions: llava flickr30k unnatural
mm1: 378 px, layer -1, patch
  pretrain | encoders 4.082e-5, connectors 4.082e-5, llm 4.082e-5 | 512 | 200000 steps |
    interleaved (10 % text): captions
  instruct | encoders 1e-5, connectors 1e-5, llm 1e-5 | 256 | 10000 steps | instructions: 1.45m
mobilevlm_v2: 336 px, layer -2, patch
  pretrain | connectors 1e-3, llm 2e-5 | 256 | 1 epoch | captions: sharegpt4v
  multitask | connectors 4e-5, llm 4e-5 | 128 | 1 epoch | instructions: ft mix2m
moe_llava: 336 px, layer -2, patch
  pretrain | connectors 1e-3 | 256 | 1 epoch | captions: 558k
  instruct | connectors 2e-5, llm 2e-5 | 128 | 1 epoch | instructions: hybrid 964k
  experts | fusion 2e-5 | 128 | 1 epoch | instructions: mix665k
mplug_owl: 224 px, layer -1, full, norm
  pretrain | encoders 1e-4, connectors 1e-4 | ~26000 | 50000 steps | captions: laion coyo cc coco
  instruct | llm (LoRA of rank 8) 2e-5 | 256 | 2000 steps | instructions (62 % text): alpaca vicuna baize llava
multi_encoder: ~384 px, ~layer -2, ~patch
  instruct | ~connectors 2e-5, ~llm 2e-5 | ~128 | ~1 epoch | ~instructions: mix665k
multimodal_gpt: 224 px, layer -1, patch
  pairs | connectors 1e-4, fusion 1e-4, tokens 1e-4 | ~4096 | 1 epoch | captions: laion-2b
  interleaved | connectors 1e-4, fusion 1e-4, tokens 1e-4 | ~2048 | 1 epoch | interleaved: mmc4
  instruct | llm (LoRA of rank 16) 1e-5, fusion (LoRA of rank 16) 1e-5 | 256 | 1 epoch |
    instructions (50 % text): multimodal
open_flamingo: 224 px, layer -1, patch
  pairs | connectors 1e-4, fusion 1e-4, tokens 1e-4 | ~4096 | 1 epoch | captions: laion-2b
  interleaved | connectors 1e-4, fusion 1e-4, tokens 1e-4 | ~2048 | 1 epoch | interleaved: mmc4
pali_x: 756 px, layer -1, patch, norm
  mixture | connectors ~1e-4, llm ~1e-4 | ~4096 | 1 epoch | captions: pali-x mixture
  resolution | ~connectors 1e-4, ~llm 1e-4 | ~4096 | ~1 epoch | ~instructions (30 % ocr): ocr detection
qwen_vl: 448 px, layer -1, patch
  pretrain | encoders 2e-4, connectors 2e-4 | 30720 | 50000 steps | captions: 1.4b
  multitask | encoders 5e-5, connectors 5e-5, llm 5e-5 | 4096 | 19000 steps |
    ~regions (20 % instructions) (50 % ocr): 76.8m
  instruct | connectors 1e-5, llm 1e-5 | 128 | 8000 steps | ~regions (50 % instructions): 350k
sharegpt4v: 336 px, layer -2, patch
  align | connectors 1e-3 | 256 | 1 epoch | captions: 558k
  pretrain | encoders (upper 1/2 of the layers) 2e-5, connectors 2e-5, llm 2e-5 | 256 | 1 epoch | captions: sharegpt4v
  instruct | connectors 2e-5, llm 2e-5 | 128 | 1 epoch | instructions: mix665k
shikra: 224 px, layer -2, patch
  reorganised | connectors 2e-5, llm 2e-5 | 64 | 100000 steps | regions: reorganised
  dialogue | connectors 2e-5, llm 2e-5 | 64 | ~3 epochs | regions: llava 150k shikra-rd
vila: 336 px, layer -2, patch
  align | connectors 1e-3 | 256 | 1 epoch | captions: 558k
  interleaved | connectors 5e-5, llm 5e-5 | 1024 | 1 epoch | interleaved: mmc4 25m coyo
  joint | connectors 2e-5, llm 2e-5 | 128 | 1 epoch | instructions (60 % text): llava flan
"""

REASONS: Mapping[tuple[str, str], str] = {
    ("captioner", "instruct"): "the survey describes a family, not a system",
    ("chatspot", "encoder"): "Not stated and ours: CLIP's layer and size",
    ("dlp", "prompts"): "Batches are 128 a GPU, of which we take eight",
    ("dlp", "align"): "Batches are 128 a GPU, of which we take eight",
    ("dlp", "generative"): "Batches are 128 a GPU, of which we take eight",
    ("flamingo", "pretrain"): "batch and steps are not given",
    ("flamingo", "finetune"): "fine-tuning (section 3.4) on VQAv2",
    ("fuyu", "pretrain"): "their rates and batches are ours",
    ("fuyu", "instruct"): "their rates and batches are ours",
    ("idefics", "pretrain"): "sequences of 1024 and 2048 tokens",
    ("idefics", "instruct"): "sequences of 1024 and 2048 tokens",
    ("kosmos1", "encoder"): "the class token are taken from Kosmos-2's code",
    ("kosmos1", "instruct"): "Instruction tuning is on language alone",
    ("kosmos2", "instruct"): "those of Kosmos-1 are used",
    ("llama_adapter", "encoder"): "every sixth layer are ours",
    ("llama_adapter_v2", "instruct"): "train prompts of the upper 31 layers",
    ("lynx", "pretrain"): "Batches are not given",
    ("lynx", "enlarge"): "Batches are not given",
    ("lynx", "instruct"): "Batches are not given",
    ("mplug_owl", "pretrain"): "about 26,000 samples",
    ("multi_encoder", "encoder"): "facts are memory of paper and code",
    ("multi_encoder", "instruct"): "facts are memory of paper and code",
    ("multimodal_gpt", "pairs"): "OpenFlamingo's",
    ("multimodal_gpt", "interleaved"): "OpenFlamingo's",
    ("open_flamingo", "pairs"): "64 and 32 samples a GPU, 64 GPUs",
    ("open_flamingo", "interleaved"): "64 and 32 samples a GPU, 64 GPUs",
    ("pali_x", "mixture"): "are not printed and are ours",
    ("pali_x", "resolution"): "three of ten ask for what is written",
    ("shikra", "dialogue"): "three epochs in its repository",
    ("cogvlm", "pretrain-grounding"): "captions and referring expressions, spelt as a question and its answer",
    ("kosmos2", "pretrain"): "The paper counts tokens: 419 thousand",
    ("llama_adapter_v2", "captions"): "its captions last 150 epochs of split data, here one",
    ("minigpt_v2", "broad"): "a stage has one template here",
    ("qwen_vl", "multitask"): "shares of the tasks are not in our sources",
    ("qwen_vl", "instruct"): "conversations with localisation among them",
}
"""(recipe, stage or `encoder`) → words of its docstring that say what is marked there."""


@dataclass(frozen=True)
class Line:
    """A line of the table, or of a recipe, in cells to be compared: numbers are numbers."""

    cells: Mapping[str, Any]
    words: str = ""
    """Of the data set's name."""
    marked: bool = False


def rate(text: str) -> tuple[str, Any]:
    part, _, lr = text.strip().rpartition(" ")
    return part, pytest.approx(float(lr), rel=1e-3)


def typed(line: str) -> tuple[str, Line]:
    """A stage's line."""
    name, trains, batch, amount, rows = (cell.strip() for cell in line.replace("~", "").split("|"))
    kind, _, words = rows.partition(": ")
    cells = {
        "trains": dict(rate(each) for each in trains.split(", ")),
        "batch": int(batch),
        "amount": amount.replace("epochs", "epoch"),
        "kind": kind,
    }
    return name, Line(cells, words, "~" in line)


def table() -> Mapping[str, Mapping[str, Line]]:
    """Recipe → stage, or `encoder` → what is typed above."""
    found: dict[str, dict[str, Line]] = {}
    for line in filter(None, TABLE.replace("|\n   ", "|").splitlines()):
        if not line.startswith(" "):
            recipe, _, sees = line.partition(": ")
            found[recipe] = {"encoder": Line({"sees": sees.replace("~", "")}, marked="~" in sees)}
        else:
            name, stage = typed(line)
            found[recipe][name] = stage
    return found


def towers(config: Any) -> Iterator[Any]:
    """The encoders that look, without what stands around them."""
    inside = getattr(config, "encoders", None) or getattr(config, "encoder", None) or getattr(config, "tower", None)
    for each in inside if isinstance(inside, tuple) else (inside,) if inside else ():
        yield from towers(each)
    if not inside:
        yield config


def sees(recipe: Recipe) -> str:
    """The first line of a recipe in the table."""
    if "image" not in recipe.model.encoders:
        return "no encoder"
    found = set()
    for tower in towers(recipe.model.encoders["image"]):
        height, width = tower.spec.size
        text = f"{height} px" if height == width else f"{height} × {width} px"
        if isinstance(tower, Vision.Config):
            text += f", layer {' '.join(map(str, tower.layers))}, {tower.select}{', norm' if tower.norm else ''}"
        found.add(text)
    assert len(found) == 1, f"towers used in several ways: {found}"
    return found.pop()


def ours(stage: Stage) -> Line:
    """What a stage has in the cells of the table."""
    trains = {part + (f" ({rate.how})" if rate.how else ""): rate.lr for part, rate in stage.train.items()}
    amount = f"{stage.steps} steps" if stage.steps else f"{stage.epochs:g} epoch"
    mixed = "".join(f" ({share:.0%} {kind})".replace("%", " %") for kind, share in stage.data.mixed.items())
    kind = stage.data.kind + mixed
    cells = {"trains": trains, "batch": stage.batch, "amount": amount, "kind": kind}
    return Line(cells, stage.data.name)


def faults(name: str, recipe: Recipe) -> list[str]:
    """Where a recipe leaves the table."""
    said = dict(table()[name])
    found = {"encoder": Line({"sees": sees(recipe)})} | {s.name: ours(s) for s in (*recipe.before, *recipe.stages)}
    if list(found) != list(said):
        return [f"stages are {list(found)}, not {list(said)}"]
    wrong = [
        f"{stage}: {cell} is {found[stage].cells[cell]}, not {value}"
        for stage, line in said.items()
        for cell, value in line.cells.items()
        if found[stage].cells[cell] != value
    ]
    return wrong + [
        f"{stage}: the data is {found[stage].words!r}, without {word!r}"
        for stage, line in said.items()
        for word in line.words.split()
        if word not in found[stage].words
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_what_its_paper_says(name: str) -> None:
    assert name in table(), "type what its paper says, from the paper"
    assert not faults(name, load_recipe(name)[1])


def test_the_table_is_of_recipes_that_exist() -> None:
    assert set(table()) == set(recipe_names())


def test_what_is_ours_has_a_reason_and_nothing_else_has() -> None:
    marked = {(recipe, stage) for recipe, lines in table().items() for stage, line in lines.items() if line.marked}
    assert marked == REASONS.keys()


@pytest.mark.parametrize(("name", "where"), REASONS)
def test_the_reason_stands_in_the_docstring(name: str, where: str) -> None:
    module = __import__(f"quintet.recipes.{name}", fromlist=["recipe"])
    assert REASONS[name, where] in re.sub(r"\s+", " ", inspect.getdoc(module) or "")


def stages(change: Callable[[Stage], Stage], at: int | None = None) -> Callable[[Recipe], Recipe]:
    """Changes one stage, or all."""

    def changed(recipe: Recipe) -> Recipe:
        which = range(len(recipe.stages)) if at is None else [at % len(recipe.stages)]
        new = tuple(change(stage) if i in which else stage for i, stage in enumerate(recipe.stages))
        return replace(recipe, stages=new)

    return changed


def other_layer(recipe: Recipe) -> Recipe:
    encoders = {"image": CLIP_L.at(layer=-1, select="patch")}
    return replace(recipe, model=replace(recipe.model, encoders=encoders))


def any_amount(stage: Stage) -> Stage:
    return replace(stage, batch=7, steps=3, train={part: replace(rate, lr=0.5) for part, rate in stage.train.items()})


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("llava", other_layer, "layer -1"),
        ("llava", stages(lambda s: replace(s, train={**s.train, "llm": Rate(lr=2e-5)}), 0), "trains"),
        ("llama_adapter_v2", stages(lambda s: replace(s, data=replace(s.data, kind="instructions")), -1), "kind"),
        ("vila", stages(lambda s: replace(s, data=replace(s.data, name="llava-v1.5-blend+textcaps")), -1), "flan"),
        ("vila", stages(lambda s: replace(s, data=replace(s.data, mixed={})), -1), "60 % text"),
        ("vila", stages(lambda s: replace(s, train={"connectors": s.train["connectors"]}), 1), "trains"),
        ("shikra", stages(any_amount), "batch"),
        ("minigpt_v2", stages(any_amount), "amount"),
        ("instructblip", stages(lambda s: replace(s, batch=9, steps=5), -1), "batch"),
        ("sharegpt4v", lambda recipe: replace(recipe, stages=recipe.stages[1:]), "stages are"),
    ],
)
def test_a_fact_that_changed_is_found(name: str, change: Callable[[Recipe], Recipe], found: str) -> None:
    assert found in "\n".join(faults(name, change(load_recipe(name)[1])))
