"""Through text: a captioner, an OCR engine and a detector write of a picture, and a plain LLM answers.

The surveys' other way to connect a modality, the expert model (Yin et al. 2023, arXiv:2306.13549, section 2.3): words
instead of features, so there is no connector, and no gradient reaches what looks. What the experts leave out the LLM
cannot know; that is the price, and `quintet compare` measures it.

Notable: the words stand where the picture stood, a line an expert (`quintet.data.texts`), and are kept by the hash of
the picture's bytes. Tesseract reads what is written (`apt-get install tesseract-ocr`). At starter scale the starter
vision encoder with its linear readers stands for all three.

Where we choose: the survey describes a family, not a system. Experts and LLM are published ones of its time; it uses
them untrained, and so does `quintet chat` on a run whose only stage did little (`--set stages.instruct.steps=1`). Our
one stage tunes the LLM on conversations about the words, as LLaVA-1.5's second does on features: what differs then is
the way in alone. Boxes are shares of the picture with two decimals in the experts' lines, in questions and in answers.
"""

from dataclasses import replace

from quintet.components.experts.published import Captioner, Detector
from quintet.components.experts.tesseract import Tesseract
from quintet.components.presets_llm import VICUNA_7B
from quintet.data.template import DECIMALS
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import VICUNA_V1
from quintet.training.stage import Data, Rate, Stage

CHAT = replace(VICUNA_V1, name="captioner", regions=DECIMALS)
"""{system} USER: Caption: …\\nText: …\\nObjects: …\\n{q} ASSISTANT: {a}</s>."""


def recipe() -> Recipe:
    """BLIP, Tesseract and RT-DETR before Vicuna-7B."""
    return Recipe(
        model=MLLM.Config(
            experts={
                "image": {
                    "Caption": Captioner.Config(source="Salesforce/blip-image-captioning-large"),
                    "Text": Tesseract.Config(),
                    "Objects": Detector.Config(source="PekingU/rtdetr_r50vd"),
                }
            },
            llm=VICUNA_7B,
        ),
        stages=(
            Stage(
                name="instruct",
                data=Data(name="llava-v1.5-mix665k", kind="instructions", rows=665_298),
                template=CHAT,
                train={"llm": Rate(lr=2e-5)},
                batch=128,
            ),
        ),
        starter=0.68,
        paper=Paper(
            title="A Survey on Multimodal Large Language Models",
            authors="Yin et al.",
            year=2023,
            arxiv="2306.13549",
            derived={"llm": "2 · 32000 · 4096 + 32 · (4 · 4096² + 3 · 4096 · 11008 + 2 · 4096) + 4096: LLaMA-7B"},
        ),
    )
