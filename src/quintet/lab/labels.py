"""What parts are called in listings: by the name that the papers use, with what it wraps and how much comes out.

Names of published weights, and of kinds of parts, where a class's own name would not be understood. A part that is not
here is called by its class, so a new one needs nothing.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from quintet.components.encoders.presets import VIT_22B
from quintet.components.encoders.vision import Vision
from quintet.components.presets_llm import UL2_32B
from quintet.config.base import Config

__all__ = ["KINDS", "WEIGHTS", "label"]

WEIGHTS: Mapping[str, str] = {
    "Qwen/Qwen-7B": "Qwen-7B",
    "Qwen/Qwen1.5-1.8B": "Qwen1.5-1.8B",
    "Salesforce/blip-image-captioning-large": "BLIP captioner",
    "Salesforce/blip2-opt-2.7b": "EVA-CLIP ViT-g/14",
    "THUDM/cogvlm-chat-hf": "EVA2-CLIP-E/14",
    "PekingU/rtdetr_r50vd": "RT-DETR",
    "adept/persimmon-8b-base": "Persimmon-8B",
    "apple/DFN5B-CLIP-ViT-H-14-378": "DFN-5B CLIP ViT-H/14-378",
    "facebook/dinov2-base": "DINOv2 ViT-B/14",
    "facebook/dinov2-large": "DINOv2 ViT-L/14",
    "facebook/opt-2.7b": "OPT-2.7B",
    "google/flan-t5-xl": "Flan-T5-XL",
    "google/siglip-base-patch16-224": "SigLIP ViT-B/16",
    "google/siglip-so400m-patch14-384": "SigLIP SO400M/14-384",
    "huggyllama/llama-7b": "LLaMA-7B",
    "huggyllama/llama-13b": "LLaMA-13B",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "OpenCLIP ViT-H/14",
    "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": "OpenCLIP ConvNeXt-L-320",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": "OpenCLIP ViT-bigG/14",
    "lmsys/vicuna-13b-delta-v0": "Vicuna-13B v0",
    "lmsys/vicuna-13b-v1.1": "Vicuna-13B v1.1",
    "lmsys/vicuna-13b-v1.5": "Vicuna-13B v1.5",
    "lmsys/vicuna-7b-delta-v0": "Vicuna-7B v0",
    "lmsys/vicuna-7b-v1.1": "Vicuna-7B v1.1",
    "lmsys/vicuna-7b-v1.3": "Vicuna-7B v1.3",
    "lmsys/vicuna-7b-v1.5": "Vicuna-7B v1.5",
    "meta-llama/Llama-2-13b-hf": "Llama 2 13B",
    "meta-llama/Llama-2-7b-chat-hf": "Llama 2 Chat 7B",
    "meta-llama/Llama-2-7b-hf": "Llama 2 7B",
    "mtgv/MobileLLaMA-1.4B-Chat": "MobileLLaMA 1.4B Chat",
    "openai/clip-vit-base-patch32": "CLIP ViT-B/32",
    "openai/clip-vit-large-patch14": "CLIP ViT-L/14",
    "openai/clip-vit-large-patch14-336": "CLIP ViT-L/14-336",
}
"""Name on the hub → name in papers; without it, the last step of the name on the hub."""

KINDS: Mapping[str, str] = {
    # Encoders.
    "Adapted": "{tower} with adapters",
    "Mix": "{encoders}",
    "NFResNet": "NF-ResNet-50",
    "Pixels": "none: pixels",
    "Tiles": "{encoder} in tiles",
    # Connectors.
    "AttentivePooling": "attentive pooling, {queries} queries",
    "Abstractor": "abstractor, {queries} queries",
    "CAbstractor": "C-Abstractor, {side} × {side}",
    "Concat": "{run} neighbours joined, linear",
    "Glu": "gated MLP",
    "Ldp": "LDPv{version}",
    "Levels": "bottleneck, {levels} depths",
    "Linear": "linear",
    "Mlp": "MLP, {depth} layers",
    "Newline": "{inner}, newlines",
    "Perceiver": "Perceiver, {latents} latents",
    "Prefix": "linear, {tokens} tokens",
    "QFormer": "Q-Former, {queries} queries",
    "QueryBlocks": "query blocks, {queries} queries",
    "Resampler": "resampler, {side} × {side} queries",
    # Fusion.
    "Adapters": "tokens, bottleneck adapters",
    "AdaptionPrompts": "adaption prompts",
    "GatedCrossAttention": "gated cross-attention",
    "MixtureOfExperts": "tokens, {experts} experts, top {top}",
    "ModalityAdapters": "tokens, modality adapters",
    "PFormer": "tokens, P-Former",
    "TokenFusion": "tokens",
    "VisualExpert": "tokens, visual experts",
}
"""Class → what its parts are called, with its settings in braces."""


def label(config: Config) -> str:
    """What a part is called.

    >>> from quintet.components.encoders.presets import CLIP_L_336
    >>> from quintet.components.encoders.tiles import Tiles
    >>> label(CLIP_L_336), label(CLIP_L_336.at(size=448)), label(Tiles.Config(encoder=CLIP_L_336))
    ('CLIP ViT-L/14-336', 'CLIP ViT-L/14-336 at 448 px', 'CLIP ViT-L/14-336 in tiles')
    """
    name = _name(config)
    if isinstance(config, Vision.Config) and config.image.size[0] != config.trained_size:
        name += f" at {config.image.size[0]} px"
    return name


def _name(config: Config) -> str:
    kind, source = type(config).__qualname__.split(".")[0], getattr(config, "source", None)
    if isinstance(config, Vision.Config) and config.family == VIT_22B.family:
        return "ViT-22B/14"
    if config == UL2_32B:
        return "UL2 32B"
    if kind in KINDS:
        settings = {field.name: getattr(config, field.name) for field in fields(config)}
        return KINDS[kind].format_map({key: _said(value) for key, value in settings.items()})
    return WEIGHTS.get(source, source.rsplit("/", 1)[-1]) if source else kind


def _said(value: Any) -> Any:
    """A setting in a name: parts by their own."""
    if isinstance(value, tuple) and value and all(isinstance(each, Config) for each in value):
        return " + ".join(map(label, value))
    return label(value) if isinstance(value, Config) else value
