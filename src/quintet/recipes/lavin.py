"""LaVIN: adapters in both towers that a modality token routes (Luo et al. 2023, arXiv:2305.15023).

Notable: 3.8 M parameters learn, in one stage without pre-training. CLIP's class tokens at six depths are the picture's
six tokens. Before every attention, of CLIP and of LLaMA, stands an adapter with two ways whose mix depends on a token:
in CLIP the class token, in LLaMA one that says whether there is a picture. So text and pictures are learnt in the same
batches, and text alone takes other ways. The adapters begin as nothing: the model begins as LLaMA.

Where we differ: a column is of the picture's kind from the picture on, not from the text's beginning
(`quintet.components.fusion.modality`), and the adapters' dropout is left out. Of the paper's two settings this is the
chat model (Alpaca and LLaVA's instructions, temperature 5; ScienceQA with 7 B has 10 and 20 epochs). Its code makes a
row of every round of LLaVA's conversations; `rows` counts conversations. Rate and batch are the paper's (the code
multiplies 9e-3 by batch / 256).
"""

from dataclasses import replace

from quintet.components.connectors.levels import Levels
from quintet.components.encoders.adapted import Adapted
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.modality import ModalityAdapters
from quintet.components.presets_llm import LLAMA_7B
from quintet.data.template import Frame, Template
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.training.stage import Data, Rate, Stage

CHAT = Template(
    name="lavin",
    user=Frame(before="Instruction: ", after="\n"),
    assistant="Response:",
    answer="",
    end="</s>",
    media={"image": Frame(before="Image: ", after=" ")},
    blank="Image: N/A ",
    joint="",
    place="outside",
)
"""Image: <image> Instruction: {q}\\nResponse:{a}</s>, and `Image: N/A` where there is none (`data_processing.py`)."""

PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""ImageNet's, not CLIP's (`datasets.py`)."""


def recipe() -> Recipe:
    """LaVIN-7B."""
    tower = CLIP_L.at(layer=(4, 8, 12, 16, 20, 24), select="cls", fit="squash")
    rate = Rate(lr=9e-3)
    return Recipe(
        model=MLLM.Config(
            encoders={
                "image": Adapted.Config(tower=replace(tower, image=replace(tower.image, **PIXELS)), temperature=5.0)
            },
            connectors={"image": Levels.Config(levels=6, hidden=128)},
            fusion=ModalityAdapters.Config(temperature=5.0),
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="instruct",
                data=Data(
                    name="alpaca-52k-and-llava-158k", kind="instructions", mixed={"text": 0.25}, rows=52_002 + 157_712
                ),
                template=CHAT,
                train={"encoders.image.adapters": rate, "connectors": rate, "fusion": rate},
                batch=32,
                epochs=15.0,
                warmup=0.2 / 15,
                weight_decay=0.02,
                betas=(0.9, 0.95),
            ),
        ),
        starter=0.76,
        paper=Paper(
            title="Cheap and Quick: Efficient Vision-Language Instruction Tuning for Large Language Models",
            authors="Luo et al.",
            year=2023,
            arxiv="2305.15023",
            derived={
                # Of width D, an adapter is down (8 D + 8), twice up (4 D + D), and a router (2 D + 2).
                "fusion": "32 · (20 · 4096 + 10) + 2 · 4096",
                "encoders.image.adapters": "24 · (20 · 1024 + 10)",
                "connectors.image": "1024 · 128 + 128 + 128 · 4096 + 4096",
            },
            trainable={"instruct": "3.8 M"},
            tokens={"image": 6},
        ),
    )
