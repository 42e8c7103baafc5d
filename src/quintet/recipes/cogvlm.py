"""CogVLM-17B: a visual expert in every layer of a frozen Vicuna (Wang et al. 2023, arXiv:2311.03079).

Notable: columns of a picture have their own projections and feed-forward weights in all layers, which begin as copies
of the LLM's, while attention is joint, so that text alone is still the LLM's to the bit; patches share one position;
learned columns begin and end a picture. Boxes are [[x0,y0,x1,y1]] in thousandths, 000 to 999, and a semicolon parts
several of one phrase.

The second stage's rows are captions and referring expressions, spelt as a question and its answer.

Where we differ: a model has one resolution here, that of the finished model (490 px); the paper begins at 224 px and
changes over for the last 30,000 steps of the second stage. The boundary columns: code (begin is the expert's, end is
the LLM's; `VisualExpert.Config.serves_last`). The rates of pre-training are from memory. The last layer's expert holds
168,820,736 weights that nothing reads but its own columns; they never learn and are not counted. That the LLM stays
frozen in the last stage is not said in so many words. The released file is read whole (`quintet import --as cogvlm`);
the encoder alone is not taken out of it: as an encoder's source its name is refused with what was found there.
"""

from quintet.components.connectors.glu import Glu
from quintet.components.encoders.presets import EVA2_CLIP_E
from quintet.components.fusion.expert import VisualExpert
from quintet.components.presets_llm import VICUNA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import COGVLM_CHAT, COGVLM_PLAIN, COGVLM_VQA
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """CogVLM-17B, the chat model."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": EVA2_CLIP_E},
            connectors={"image": Glu.Config(ffn=11_008)},
            fusion=VisualExpert.Config(serves_last=False),
            llm=VICUNA_7B,
        ),
        stages=(
            Stage(
                name="pretrain-captions",
                data=Data(name="laion-2b-coyo-700m-filtered", kind="captions", rows=1_500_000_000),
                template=COGVLM_PLAIN,
                train={"connectors": Rate(lr=1e-4), "fusion": Rate(lr=1e-4)},
                batch=8192,
                steps=120_000,
            ),
            Stage(
                name="pretrain-grounding",
                data=Data(name="laion-40m-grounded", kind="instructions", rows=40_000_000),
                template=COGVLM_VQA,
                train={"connectors": Rate(lr=1e-5), "fusion": Rate(lr=1e-5)},
                batch=1024,
                steps=60_000,
            ),
            Stage(
                name="instruct",
                data=Data(name="cogvlm-sft", kind="instructions"),
                template=COGVLM_CHAT,
                train={"connectors": Rate(lr=1e-5), "fusion": Rate(lr=1e-5), "encoders": Rate(lr=1e-6)},
                batch=1024,
                steps=6000,
            ),
        ),
        paper=Paper(
            title="CogVLM: Visual Expert for Pretrained Language Models",
            authors="Wang et al.",
            year=2023,
            arxiv="2311.03079",
            published={"together": "17 B", "encoders.image": "4.4 B"},
            differs={
                "together": "17.47 B, which is 17 B once rounded",
                "encoders.image": "EVA2-CLIP-E without the last of its 64 layers, as in the released code",
            },
            derived={
                "fusion": "31 · (4 · 4096² + 3 · 4096 · 11008) + 2 · 4096²: of the last layer, keys and values alone",
                "connectors.image": "1792 · 4096 + 2 · 4096 + 3 · 4096 · 11008 + 2 · 4096",
            },
            trainable={"pretrain-grounding": "6.5 B"},
            tokens={"image": 35 * 35 + 2},
        ),
    )
