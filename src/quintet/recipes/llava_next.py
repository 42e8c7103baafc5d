"""LLaVA-NeXT: LLaVA-1.5 that sees a picture in tiles (Liu et al. 2024, LLaVA-NeXT; also called LLaVA-1.6).

Notable: how many tokens a picture takes depends on its aspect. The best of five canvases of two to four tiles of 336 px
is filled; 576 tokens of the whole picture come first, then the tiles as one map whose padding is cut off, each of its
rows ended by a learnt newline. The vision encoder trains too, at a tenth of the rate.

There is no paper: facts are those of the blog post (https://llava-vl.github.io/blog/2024-01-30-llava-next/) and of the
code; batches and the size of the second set are memory. Models with Mistral and larger LLMs
were released too; this is the one with Vicuna 7B.
"""

from quintet.components.connectors.mlp import Mlp
from quintet.components.connectors.newline import Newline
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.encoders.tiles import Tiles
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import VICUNA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import PLAIN, VICUNA_V1
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """LLaVA-NeXT-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": Tiles.Config(encoder=CLIP_L_336.at(layer=-2, select="patch", fit="squash"))},
            connectors={"image": Newline.Config(inner=Mlp.Config(depth=2), rows="details")},
            fusion=TokenFusion.Config(),
            llm=VICUNA_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="lcs-558k", kind="captions", rows=558_128),
                template=PLAIN,
                train={"connectors": Rate(lr=1e-3)},
                batch=256,
                row=4096,
            ),
            Stage(
                name="instruct",
                data=Data(name="llava-next-760k", kind="instructions", rows=760_000),
                template=VICUNA_V1,
                train={"encoders": Rate(lr=2e-6), "connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
                row=4096,
            ),
        ),
        starter=0.65,
        paper=Paper(
            title="LLaVA-NeXT: Improved reasoning, OCR, and world knowledge",
            authors="Liu et al.",
            year=2024,
            arxiv="",
            url="https://llava-vl.github.io/blog/2024-01-30-llava-next/",
            derived={"connectors.image": "1024 · 4096 + 4096 + 4096 · 4096 + 4096 + 4096: LLaVA-1.5's and the newline"},
            # Five views, and a newline after each of the 48 rows of two tiles.
            tokens={"image": 5 * 576 + 48},
        ),
    )
