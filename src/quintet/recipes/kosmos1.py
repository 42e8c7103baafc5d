"""Kosmos-1: a language model that grows up with pictures (Huang et al. 2023, arXiv:2302.14045).

Notable: the LLM is trained from scratch, a Magneto decoder with xPos, on text, captions and pages with pictures; of the
encoder only the last layer trains. 64 latent queries make a picture's features, which stand between <image> and
</image>.

Each update mixes 256 rows of text, 6,144 captioned pictures and 128 interleaved pages; here they are one source, mixed
beforehand. Instruction tuning is on language alone: 256 instructions and 32 rows of text, among 768 captioned pictures
and 16 pages again (Scenes: its captions, and 27 % questions about what is told in words). No question about a picture
is ever learnt. The resampler's inside and the class token are taken from Kosmos-2's code.
"""

from quintet.components.connectors.resampler import AttentivePooling
from quintet.components.encoders.presets import CLIP_L
from quintet.components.llms.magneto import Magneto
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_query import KOSMOS, KOSMOS_CAPTION
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """Kosmos-1, 1.6B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-1, select="full", norm=True, fit="squash")},
            connectors={"image": AttentivePooling.Config()},
            llm=Magneto.Config(vocab=64_007, positions="xpos"),
        ),
        stages=(
            _stage("pretrain", lr=2e-4, batch=6_528, steps=300_000, captions=True),
            _stage("instruct", lr=2e-5, batch=1_072, steps=10_000, captions=False),
        ),
        paper=Paper(
            title="Language Is Not All You Need: Aligning Perception with Language Models",
            authors="Huang et al.",
            year=2023,
            arxiv="2302.14045",
            published={"together": "1.6 B", "llm": "1.3 B"},
            differs={
                "together": "1.34 B, CLIP's 0.30 B and 0.02 B; the paper adds up 1.3 B and 0.3 B",
                "llm": "1.34 B, which is 1.3 B once rounded",
            },
            derived={"connectors.image": "1024 · 2048 + 2048 + 64 · 2048 + 4 · (2048 · 2048 + 2048)"},
            tokens={"image": 64},
        ),
    )


def _stage(name: str, *, lr: float, batch: int, steps: int, captions: bool) -> Stage:
    pages = Data(name="text-pairs-interleaved", kind="interleaved")
    language = Data(name="unnatural-instructions-flan", kind="captions", mixed={"text": 288 / 1_072})
    return Stage(
        name=name,
        data=pages if captions else language,
        template=KOSMOS_CAPTION if captions else KOSMOS,
        train={"encoders": Rate(lr=lr, upper=1 / 24), "connectors": Rate(lr=lr), "llm": Rate(lr=lr)},
        batch=batch,
        steps=steps,
        warmup=375 / steps,
        schedule="linear",
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
