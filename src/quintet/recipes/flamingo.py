"""Flamingo: gated cross-attention between a frozen LM's blocks (Alayrac et al. 2022, arXiv:2204.14198).

Notable: a Perceiver resampler makes 64 features of any picture or video; blocks that begin as nothing (tanh(0)) stand
before every fourth block of the LM and look at them, so at the start the logits are the LM's, exactly. A column sees
the last picture before it and no other. Encoder and LM stay as they are; the resampler, the gated blocks and the rows
of the two added tokens learn (`<image>` is the fusion's marker).

What differs, and why. NFNet-F6 and Chinchilla were not published: SigLIP-SO400M (400 M, contrastive too) at the paper's
320 px and LLaMA-7B stand in. Of Flamingo-9B the paper prints 194 M for the resampler, 1.6 B for the gated blocks and
7.1 B for the LM. The LM's and the blocks' are those of 32 layers of width 4096 and a gated block before every fourth
(8 × 12 · 4096²), which LLaMA-7B has, not of the 40 and 10 in its table of sizes (8.7 B and 2.0 B). The resampler's is
that of heads of 128 (96 in the same table gives 175 M) behind a projection from 3072 channels: it comes out with that
encoder and without the projection to the LM's width, which the paper must count elsewhere; with ours it is 197 M.

The paper adds up gradients of four data sets in a step (weights 1, 0.2, 0.2, 0.03); a stage here has one source. Its
batch and steps are not given; ours are defaults. On web pages its columns look at the picture before or after them, one
as often as the other (p_next = 0.5); here at the one before. Every word of a page is learnt. The second stage is its
fine-tuning (section 3.4) on VQAv2, without the larger pictures and the unfrozen encoder. Weight decay is on all
matrices, the paper's not on the resampler. At starter scale the attention's gates begin at tanh(0.5), here and in all
recipes with gated blocks: minutes do not open them (docs/log.md).
"""

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.presets import SIGLIP_SO400M_384
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.presets_llm import LLAMA_7B
from quintet.data.sources.pages import Pages
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_feature import FLAMINGO, FLAMINGO_PAIR
from quintet.training.stage import Data, Rate, Stage

M3W = Pages(pictures=5)
"""The first five pictures of a page (section 2.4; its 256 tokens of a page are drawn anew each time, ours are not)."""


def recipe() -> Recipe:
    """Flamingo-9B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": SIGLIP_SO400M_384.at(layer=-1, size=320)},
            connectors={
                "image": Perceiver.Config(heads=16, head_dim=128, width=1536, act="squared_relu", frames=8),
            },
            fusion=GatedCrossAttention.Config(every=4, heads=32, head_dim=128, act="squared_relu"),
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="m3w+align+ltip+vtp", kind="interleaved", rows=2_182_000_000, pages=M3W),
                template=FLAMINGO_PAIR,
                train={"connectors": Rate(lr=1e-4), "fusion": Rate(lr=1e-4), "tokens": Rate(lr=1e-4)},
                batch=2048,
                steps=500_000,
                warmup=0.01,  # 5000 steps
                schedule="constant",
                weight_decay=0.1,
            ),
            Stage(
                name="finetune",
                data=Data(name="vqav2", kind="instructions", rows=443_757),
                template=FLAMINGO,
                train={"connectors": Rate(lr=1e-5), "fusion": Rate(lr=1e-5), "tokens": Rate(lr=1e-5)},
                batch=128,
                weight_decay=0.1,
            ),
        ),
        paper=Paper(
            title="Flamingo: a Visual Language Model for Few-Shot Learning",
            authors="Alayrac et al.",
            year=2022,
            arxiv="2204.14198",
            published={"connectors.image": "194 M", "fusion": "1.6 B", "llm": "7.1 B"},
            differs={
                "connectors.image": "features of 1152 instead of 3072 channels are 2.9 M less, the projection to "
                "the LM's width, which the paper must count elsewhere, is 6.3 M more",
                "llm": "LLaMA-7B stands in for Chinchilla, which was not published",
            },
            tokens={"image": 64},
        ),
    )
