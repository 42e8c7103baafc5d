"""PaLI-X: a ViT-22B's patches into the encoder of a UL2 encoder–decoder (Chen et al. 2023, arXiv:2305.18565).

Notable: the picture stands in front of the text that the encoder reads, the decoder sees neither but through its
cross-attention. Training mixes objectives over texts: split captioning, in which a part of the caption is given and
the rest is learnt (`Completion.prefix`), span corruption with T5's sentinels (`Completion.spans`), and answers as they
are; a sample asks one thing (`Completion.one`). 224 px at first with the encoder frozen; then pictures of 448, 672 and
756 px for reading and detection.

No code and no weights exist. The encoder is ViT-22B as its own paper gives it. The LLM's 32 B are 50 + 50 layers of
UL2-20B's widths with mT5's vocabulary. Where we differ: the model has one size of pictures, the last, and two stages
for its sub-stages; the paper's spans are of text alone, here also of captions under their pictures; image tokens are
not predicted. From memory: prompts, the form of boxes, the shares of the objectives, which are PaLI's. Rates, batches
and steps are not printed and are ours; so is what trains in the second stage (as in the first), and the shares of its
tasks: of Scenes' rows, where no file is given, three of ten ask for what is written, the others are conversations.

At the starter scale no trained encoder–decoder ships with the package: the LLM is a random one of three and three
layers, which learns all it knows of language in these stages; at 5e-4, since at 1e-3 it reads no digits (docs/log.md).
"""

from quintet.components.connectors.linear import Linear
from quintet.components.encoders.presets import VIT_22B
from quintet.components.presets_llm import UL2_32B
from quintet.data.completion import Completion
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_seq2seq import PALI_X, PALI_X_MIXTURE
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """PaLI-X, 55B."""
    train = {"connectors": Rate(lr=1e-4), "llm": Rate(lr=1e-4)}
    return Recipe(
        model=MLLM.Config(
            encoders={"image": VIT_22B.at(size=756)},
            connectors={"image": Linear.Config()},
            llm=UL2_32B,
        ),
        stages=(
            Stage(
                name="mixture",
                data=Data(name="pali-x-mixture", kind="captions", rows=2_200_000_000),
                template=PALI_X_MIXTURE,
                completion=Completion(prefix=0.6, spans=0.1, one=True),
                train=train,
                batch=4096,
                row=4096,
            ),
            Stage(
                name="resolution",
                data=Data(name="pali-x-ocr-detection", kind="instructions", mixed={"ocr": 0.3}),
                template=PALI_X,
                completion=Completion(one=True),
                train=train,
                batch=4096,
                row=4096,
            ),
        ),
        starter=2.0,
        starter_rates={"llm": 5e-4},
        paper=Paper(
            title="PaLI-X: On Scaling up a Multilingual Vision and Language Model",
            authors="Chen et al.",
            year=2023,
            arxiv="2305.18565",
            # The encoder's in ViT-22B's own paper, arXiv:2302.05442, table 1.
            published={"together": "55 B", "encoders.image": "21,743 M", "llm": "32 B"},
            differs={"together": "the printed parts, 22 B and 32 B, are 54 B too"},
            derived={"connectors.image": "6144 · 4096 + 4096"},
            tokens={"image": 54 * 54},
        ),
    )
