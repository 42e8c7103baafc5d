"""Fuyu-8B: no vision encoder, patches of pixels go straight into the decoder (Bavishi et al. 2023).

Notable: one linear layer maps 30 × 30 pixels to an embedding, a newline ends each row of patches, and so a picture of
any size up to 1080 × 1920 is read as it is: rows × (columns + 1) tokens. Positions are the text's own. The picture
stands before the beginning of the text. Boxes and points stand between tags of its vocabulary, <0x00> to <0x03>, y
before x, in halved pixels; <0x04> begins an answer. Source: https://www.adept.ai/blog/fuyu-8b and transformers; there
is no paper.

How it was trained is not published: the two stages here, their rates and batches are ours; the end marker is memory.
A comma parts coordinates, as users write them; its processor makes each number one token. Tokenizers without the tags
get them as added tokens, and so `quintet show` counts six rows that are in the published table.
The newline is |NEWLINE|, a row of the embedding, which an import copies; here it is a vector of the connector. The LLM
is Persimmon; its 8B base model has the published shape. At the starter scale an answer begins with a space.
"""

from dataclasses import replace

from quintet.components.connectors.linear import Linear
from quintet.components.connectors.newline import Newline
from quintet.components.encoders.pixels import Pixels
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import PERSIMMON_8B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import FUYU
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """Fuyu-8B."""
    pretrain = Stage(
        name="pretrain",
        data=Data(name="unpublished", kind="captions"),
        template=FUYU,
        train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
        batch=128,
        row=16_384,
        micro=16_384,
    )
    return Recipe(
        model=MLLM.Config(
            encoders={"image": Pixels.Config(patch=30)},
            connectors={"image": Newline.Config(inner=Linear.Config(), rows="all")},
            fusion=TokenFusion.Config(),
            llm=PERSIMMON_8B,
        ),
        stages=(
            pretrain,
            replace(pretrain, name="instruct", data=Data(name="unpublished", kind="instructions")),
        ),
        starter=0.88,
        paper=Paper(
            title="Fuyu-8B: A Multimodal Architecture for AI Agents",
            authors="Bavishi et al.",
            year=2023,
            arxiv="",
            url="https://www.adept.ai/blog/fuyu-8b",
            published={"together": "8 B"},
            differs={
                "together": "as its name has it; two tables of 262,144 words, 1.07 B each, are in its weights too"
            },
            derived={"connectors.image": "(2700 + 1) · 4096 + 4096: weights, bias and newline"},
            # A picture of 1080 × 1920.
            tokens={"image": 36 * (64 + 1)},
        ),
    )
