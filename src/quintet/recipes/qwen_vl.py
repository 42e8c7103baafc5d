"""Qwen-VL: one layer of resampling, places kept, three stages (Bai et al. 2023, arXiv:2308.12966).

Notable: 256 queries on a 16 × 16 grid, with fixed positions on queries and keys, take 1024 patches at 448 px (256 at
224 px in the first stage). The second stage mixes seven tasks, the last one learns conversations with localisation
among them. Pictures stand between <img> and </img> and are numbered in chat; boxes are <box>(x1,y1),(x2,y2)</box> after
<ref>…</ref>, in whole thousandths. The encoder and the adapter train first, then all, then all but the encoder.

The first stage has pictures of 224 px, the model here has one size, 448: its features are those of the later stages.
The encoder is OpenCLIP's bigG without the class token. The released fine-tuning also learns the markers of every turn.
The first stage's rate falls by 0.95 a layer of the encoder in the paper (memory); here all layers have one. <quad>, for
areas of four corners, is among the added tokens, but has no spelling of regions here. Schedules' ends, warm-ups, and
the batches of the last two stages are given from memory. Qwen-7B is read through our decoder; its released files have
other names.

At the starter scale every query begins by looking at its own place, the LLM learns the template's end marker, and an
answer in ChatML begins with a space. Without a file, half of the rows of the second stage ask for what is written and a
fifth are conversations, as are half of the last one's, which is ours: the paper's shares of the tasks are not in our
sources. Most of the samples are the first stage's, as in the paper: words take its resampler long (docs/log.md).
"""

from quintet.components.connectors.resampler import Resampler
from quintet.components.encoders.presets import OPENCLIP_BIGG
from quintet.components.presets_llm import QWEN_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_query import QWEN_VL, QWEN_VL_CAPTION, QWEN_VL_TASKS
from quintet.training.stage import Data, Rate, Stage

PAPER = Paper(
    title="Qwen-VL: A Versatile Vision-Language Model for Understanding, Localization, Text Reading, and Beyond",
    authors="Bai et al.",
    year=2023,
    arxiv="2308.12966",
    published={"together": "9.6 B", "encoders.image": "1.9 B", "connectors.image": "0.08 B", "llm": "7.7 B"},
    differs={
        "encoders.image": "the paper must count to it the adapter's last projection, 0.02 B",
        "connectors.image": "75.0 M of cross-attention, and the last projection, 16.8 M",
    },
    derived={"connectors.image": "91,791,360: the resampler of its released code"},
    tokens={"image": 256},
)


def recipe() -> Recipe:
    """Qwen-VL-Chat."""
    encoder = OPENCLIP_BIGG.at(layer=-1, size=448, fit="squash")
    return Recipe(
        model=MLLM.Config(
            encoders={"image": encoder.without_class_token()},
            connectors={"image": Resampler.Config()},
            llm=QWEN_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="qwen-vl-1.4b", kind="captions", rows=1_400_000_000),
                template=QWEN_VL_CAPTION,
                train={"encoders": Rate(lr=2e-4), "connectors": Rate(lr=2e-4)},
                batch=30_720,
                steps=50_000,
                warmup=500 / 50_000,
                final=1e-6 / 2e-4,
                betas=(0.9, 0.98),
                weight_decay=0.05,
            ),
            Stage(
                name="multitask",
                data=Data(
                    name="qwen-vl-76.8m", kind="regions", mixed={"instructions": 0.2, "ocr": 0.5}, rows=76_800_000
                ),
                template=QWEN_VL_TASKS,
                train={"encoders": Rate(lr=5e-5), "connectors": Rate(lr=5e-5), "llm": Rate(lr=5e-5)},
                batch=4_096,
                steps=19_000,
                warmup=400 / 19_000,
                final=0.2,
                betas=(0.9, 0.98),
                weight_decay=0.05,
            ),
            Stage(
                name="instruct",
                data=Data(name="qwen-vl-chat-350k", kind="regions", mixed={"instructions": 0.5}, rows=350_000),
                template=QWEN_VL,
                train={"connectors": Rate(lr=1e-5), "llm": Rate(lr=1e-5)},
                batch=128,
                steps=8_000,
                warmup=3_000 / 8_000,
                final=0.1,
                betas=(0.9, 0.98),
                weight_decay=0.05,
            ),
        ),
        starter=1.7,
        starter_rates={"encoders": 1e-4, "connectors": 1e-3},
        starter_shares={"pretrain": 7, "multitask": 2, "instruct": 1},
        paper=PAPER,
    )
