"""MiniGPT-v2: one model for many tasks, told apart by identifiers (Chen et al. 2023, arXiv:2310.09478).

Notable: EVA-CLIP at 448 px, always frozen, gives 1024 patches; four neighbours in raster order are joined into one long
feature, so that 256 tokens reach Llama 2, which learns by adapters on its queries and values in all three stages. Six
identifiers ([vqa], [caption], [grounding], [refer], [identify], [detection]) begin a question about a picture; they are
plain text.

Its code's data sets bring their identifier; here the words of a question choose it (`_templates.IDENTIFIERS`), so that
rows need not name it. A question that begins with one keeps it; conversations of the last stage have none in its code
and [vqa] here. Batches and steps of the first two stages are memory; the last stage is the released configuration's.

The weakly-labelled pairs (LAION, CC, SBU) have no instruction in its code: a caption follows its picture, and a line's
end ends it, which is the code's default (this stage's configuration is not released). The paper has the fine-grained
sets in the first stage too; a stage has one template here, so they come with the second.

At the starter scale the connector and the adapters learn at 5e-3 (docs/log.md).
"""

from quintet.components.connectors.concat import Concat
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.components.fusion.token import TokenFusion
from quintet.components.lora import Lora
from quintet.components.presets_llm import LLAMA2_CHAT_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import MINIGPT_V2, PLAIN
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """MiniGPT-v2 (7B)."""
    adapters = Lora(rank=64, alpha=16, dropout=0.05, targets=("q_proj", "v_proj"))
    return Recipe(
        model=MLLM.Config(
            encoders={"image": EVA_CLIP_G.at(size=448, norm=True)},
            connectors={"image": Concat.Config(run=4)},
            fusion=TokenFusion.Config(),
            llm=LLAMA2_CHAT_7B,
        ),
        stages=(
            Stage(
                name="broad",
                data=Data(name="weakly-labelled", kind="captions"),
                template=PLAIN,
                train={"connectors": Rate(lr=1e-4), "llm": Rate(lr=1e-4, lora=adapters)},
                batch=96,
                steps=400_000,
            ),
            Stage(
                name="fine-grained",
                data=Data(name="fine-grained", kind="instructions"),
                template=MINIGPT_V2,
                train={"connectors": Rate(lr=1e-5), "llm": Rate(lr=1e-5, lora=adapters)},
                batch=64,
                steps=50_000,
            ),
            Stage(
                name="instruct",
                data=Data(name="fine-grained+llava+flickr30k+unnatural", kind="instructions"),
                template=MINIGPT_V2,
                train={"connectors": Rate(lr=1e-5), "llm": Rate(lr=1e-5, lora=adapters)},
                batch=24,
                steps=35_000,
                final=0.1,
            ),
        ),
        starter=1.5,
        starter_rates={"connectors": 5e-3, "llm": 5e-3},
        paper=Paper(
            title="MiniGPT-v2: Large Language Model as a Unified Interface for Vision-Language Multi-task Learning",
            authors="Chen et al.",
            year=2023,
            arxiv="2310.09478",
            derived={"connectors.image": "4 · 1408 · 4096 + 4096"},
            tokens={"image": 256},
        ),
    )
