"""Published vision encoders as data: shape, picture preparation, weights' name on the hub and licence.

Shapes and picture preparation are those of the `config.json` and `preprocessor_config.json` next to the weights;
ConvNeXt's are those of OpenCLIP's `convnext_large_d_320.json` and `pretrained.py`, and of timm's `convnext_large`.
Use the transformers with `.at(layer=…, select=…, size=…)`. Licences are those of the weights (the model cards).
"""

from dataclasses import replace

from quintet.components.encoders.convnext import ConvNeXt
from quintet.components.encoders.vision import Vision
from quintet.components.roles import ImageSpec

__all__ = [
    "CLIP_B_32",
    "CLIP_H",
    "CLIP_L",
    "CLIP_L_336",
    "DFN_H_378",
    "DINOV2_B",
    "DINOV2_L",
    "EVA2_CLIP_E",
    "EVA_CLIP_G",
    "OPENCLIP_BIGG",
    "OPENCLIP_CONVNEXT_L",
    "SIGLIP_B_224",
    "SIGLIP_SO400M_384",
    "VIT_22B",
]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)

_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_CLIP_GREY = (122, 116, 104)  # its mean in 0 … 255: what LLaVA-1.5 pads with, so that padding becomes zeros

_IMAGENET_MEAN = (0.485, 0.456, 0.406)

_IMAGENET_STD = (0.229, 0.224, 0.225)

_CLIP_224 = ImageSpec(size=(224, 224), fit="crop", mean=_CLIP_MEAN, std=_CLIP_STD, background=_CLIP_GREY)

_CLIP_336 = ImageSpec(size=(336, 336), fit="crop", mean=_CLIP_MEAN, std=_CLIP_STD, background=_CLIP_GREY)

_DINOV2 = ImageSpec(size=(224, 224), fit="crop", mean=_IMAGENET_MEAN, std=_IMAGENET_STD, background=(124, 116, 104))

CLIP_L = Vision.Config(
    family="clip",
    width=1024,
    depth=24,
    heads=16,
    ffn=4096,
    patch=14,
    trained_size=224,
    act="quick_gelu",
    eps=1e-5,
    image=_CLIP_224,
    source="openai/clip-vit-large-patch14",
    licence="MIT",
)

CLIP_L_336 = Vision.Config(
    family="clip",
    width=1024,
    depth=24,
    heads=16,
    ffn=4096,
    patch=14,
    trained_size=336,
    act="quick_gelu",
    eps=1e-5,
    image=_CLIP_336,
    source="openai/clip-vit-large-patch14-336",
    licence="MIT",
)

CLIP_B_32 = Vision.Config(
    family="clip",
    width=768,
    depth=12,
    heads=12,
    ffn=3072,
    patch=32,
    trained_size=224,
    act="quick_gelu",
    eps=1e-5,
    image=_CLIP_224,
    source="openai/clip-vit-base-patch32",
    licence="MIT",
)

CLIP_H = Vision.Config(
    family="clip",
    width=1280,
    depth=32,
    heads=16,
    ffn=5120,
    patch=14,
    trained_size=224,
    act="gelu",
    eps=1e-5,
    image=_CLIP_224,
    source="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    licence="MIT",
)

SIGLIP_SO400M_384 = Vision.Config(
    family="siglip",
    width=1152,
    depth=27,
    heads=16,
    ffn=4304,
    patch=14,
    trained_size=384,
    act="gelu_pytorch_tanh",
    eps=1e-6,
    image=ImageSpec(size=(384, 384), fit="squash", background=(128, 128, 128)),
    source="google/siglip-so400m-patch14-384",
    licence="Apache-2.0",
)

SIGLIP_B_224 = Vision.Config(
    family="siglip",
    width=768,
    depth=12,
    heads=12,
    ffn=3072,
    patch=16,
    trained_size=224,
    act="gelu_pytorch_tanh",
    eps=1e-6,
    image=ImageSpec(size=(224, 224), fit="squash", background=(128, 128, 128)),
    source="google/siglip-base-patch16-224",
    licence="Apache-2.0",
)

DINOV2_L = Vision.Config(
    family="dinov2",
    width=1024,
    depth=24,
    heads=16,
    ffn=4096,
    patch=14,
    trained_size=518,
    act="gelu",
    eps=1e-6,
    image=_DINOV2,
    layer=-1,
    norm=True,
    source="facebook/dinov2-large",
    licence="Apache-2.0",
)

DINOV2_B = Vision.Config(
    family="dinov2",
    width=768,
    depth=12,
    heads=12,
    ffn=3072,
    patch=14,
    trained_size=518,
    act="gelu",
    eps=1e-6,
    image=_DINOV2,
    layer=-1,
    norm=True,
    source="facebook/dinov2-base",
    licence="Apache-2.0",
)
DFN_H_378 = Vision.Config(
    family="clip",
    width=1280,
    depth=32,
    heads=16,
    ffn=5120,
    patch=14,
    trained_size=378,
    act="quick_gelu",
    eps=1e-5,
    image=ImageSpec(size=(378, 378), fit="squash", mean=_CLIP_MEAN, std=_CLIP_STD, background=_CLIP_GREY),
    source="apple/DFN5B-CLIP-ViT-H-14-378",
    licence="Apple AMLR",
)
EVA_CLIP_G = Vision.Config(
    family="blip2",
    width=1408,
    depth=39,
    heads=16,
    ffn=6144,
    patch=14,
    trained_size=224,
    act="gelu",
    eps=1e-6,
    image=ImageSpec(size=(224, 224), fit="squash", mean=_CLIP_MEAN, std=_CLIP_STD, background=_CLIP_GREY),
    layer=-1,
    source="Salesforce/blip2-opt-2.7b",
    licence="MIT",
)
"""ViT-g/14 of EVA-CLIP as BLIP-2 publishes it: the last of its 40 layers is cut off. Its last norm is BLIP-2's
`ln_vision`, trained with the Q-Former: `norm=True` takes it from the file, a connector with `norm` has its own."""

OPENCLIP_BIGG = Vision.Config(
    family="clip",
    width=1664,
    depth=48,
    heads=16,
    ffn=8192,
    patch=14,
    trained_size=224,
    act="gelu",
    eps=1e-5,
    image=_CLIP_224,
    source="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    licence="MIT",
)

OPENCLIP_CONVNEXT_L = ConvNeXt.Config(
    depths=(3, 3, 27, 3),
    widths=(192, 384, 768, 1536),
    image=replace(_CLIP_224, size=(320, 320)),
    source="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    licence="MIT",
)
"""ConvNeXt-L of a CLIP on LAION-2B: `convnext_large_d_320`, the mean of three fine-tunings at 320 px."""

EVA2_CLIP_E = Vision.Config(
    family="eva2",
    width=1792,
    depth=63,
    heads=16,
    ffn=15_360,
    patch=14,
    trained_size=490,
    act="gelu",
    eps=1e-6,
    image=ImageSpec(size=(490, 490), fit="squash", mean=_CLIP_MEAN, std=_CLIP_STD, background=_CLIP_GREY),
    layer=-1,
    source="THUDM/cogvlm-chat-hf",
    licence="CogVLM",
)
"""EVA2-CLIP-E without its last layer, its positions at 490 px, as CogVLM's file holds it."""

VIT_22B = Vision.Config(
    family="vit22b",
    width=6144,
    depth=48,
    heads=48,
    ffn=24_576,
    patch=14,
    trained_size=224,
    act="gelu",
    eps=1e-6,
    image=ImageSpec(size=(224, 224), fit="squash", background=(128, 128, 128)),
    layer=-1,
    norm=True,
    class_token=False,
)
"""ViT-22B (table 1 of its paper) as PaLI-X uses it: all patches, no class token. No weights are released."""
