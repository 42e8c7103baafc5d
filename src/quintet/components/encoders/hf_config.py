"""Published `config.json` and `preprocessor_config.json` of CLIP, SigLIP and DINOv2 ⇄ `Vision.Config`.

Keys that are absent mean the class's defaults, as transformers has them. What our encoder would compute differently
is refused, never ignored.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quintet.components.encoders.vision import Vision
from quintet.components.roles import ImageSpec
from quintet.errors import ConfigError, nearest

__all__ = ["as_published", "from_hf", "image_spec", "to_hf", "to_image_processor"]

_SHARED = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "num_channels": 3}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": _SHARED
    | {"intermediate_size": 3072, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": _SHARED
    | {
        "intermediate_size": 3072,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
    "dinov2": _SHARED
    | {
        "mlp_ratio": 4,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
    },
    "blip_2_vision_model": _SHARED
    | {
        "hidden_size": 1408,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
        "intermediate_size": 6144,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    },
}
"""Read from the config classes of transformers 5.23."""

_FAMILIES = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "dinov2": "dinov2",
    "blip_2_vision_model": "blip2",
}
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}


def from_hf(config: Mapping[str, Any], *, image: ImageSpec | None = None) -> Vision.Config:
    """The encoder that a `config.json` describes; its features are the last hidden state but one.

    A CLIP or SigLIP pair of towers gives its vision tower. Without `image`, pictures are squashed to the trained size
    and normalised to -1 … 1.

    Raises:
        ConfigError: a class or a setting that our encoder does not have.
    """
    found: Mapping[str, Any] = config.get("vision_config", config)
    pair = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "blip-2": "blip_2_vision_model"}
    kind = pair.get(str(found.get("model_type")), found.get("model_type"))
    if kind is None and config.get("model_type") in pair:
        kind = pair[config["model_type"]]
    if kind not in _DEFAULTS:
        raise ConfigError(f"model_type {kind!r} is not one of our vision encoders{nearest(str(kind), _DEFAULTS)}")
    found = _DEFAULTS[kind] | {name: value for name, value in found.items() if value is not None}
    if found["num_channels"] != 3:
        raise ConfigError(f"num_channels is {found['num_channels']}; pictures here have 3")
    if found.get("use_swiglu_ffn") or not found.get("qkv_bias", True):
        raise ConfigError(f"a {kind} with a SwiGLU feed-forward or without biases is not ours")
    side = found["image_size"]
    if not isinstance(side, int):
        raise ConfigError(f"image_size is {side!r}; the table of positions must be square, given as one number")
    return Vision.Config(
        family=_FAMILIES[kind],  # type: ignore[arg-type]
        width=found["hidden_size"],
        depth=found["num_hidden_layers"],
        heads=found["num_attention_heads"],
        ffn=found["intermediate_size"] if kind != "dinov2" else found["hidden_size"] * found["mlp_ratio"],
        patch=found["patch_size"],
        trained_size=side,
        act=_activation(found["hidden_act"]),  # type: ignore[arg-type]
        eps=float(found["layer_norm_eps"]),
        image=image or ImageSpec(size=(side, side)),
        layer=-2 if found["num_hidden_layers"] > 1 else -1,
        head=bool(found.get("vision_use_head", False)),
        source=config.get("_name_or_path") or "",
    )


def to_hf(config: Vision.Config) -> dict[str, Any]:
    """The `config.json` of transformers for this encoder as it is held: without `keep_unused`, the layers that run."""
    kind = {family: name for name, family in _FAMILIES.items()}[config.family]
    name = {
        "clip": "CLIPVisionModel",
        "siglip": "SiglipVisionModel",
        "dinov2": "Dinov2Model",
        "blip2": "Blip2VisionModel",
    }[config.family]
    out: dict[str, Any] = {
        "model_type": kind,
        "architectures": [name],
        "hidden_size": config.width,
        "num_hidden_layers": config.depth if config.keep_unused else config.num_run,
        "num_attention_heads": config.heads,
        "image_size": config.trained_size,
        "patch_size": config.patch,
        "num_channels": 3,
        "hidden_act": config.act,
        "layer_norm_eps": config.eps,
    }
    if config.family == "dinov2":
        return out | {"mlp_ratio": config.ffn // config.width, "use_mask_token": False}
    out["intermediate_size"] = config.ffn
    if config.family == "siglip":
        out["vision_use_head"] = config.head and config.keep_unused
    return out


def image_spec(processor: Mapping[str, Any], *, size: int) -> ImageSpec:
    """How a `preprocessor_config.json` prepares pictures for an encoder of this size, pixels.

    Raises:
        ConfigError: a preparation that is none of ours.
    """
    kind = str(processor.get("image_processor_type", "CLIPImageProcessor")).lower()
    clip = "siglip" not in kind
    given: dict[str, Any] = {name: value for name, value in processor.items() if value is not None}
    crops = clip and not any(name in kind for name in ("blip", "idefics", "kosmos"))
    processor = dict[str, Any](do_center_crop=crops) | given
    if "idefics" in kind and "image_size" in given:
        processor["size"] = given["image_size"]
    if (scaled := _sides(processor.get("size"))) and scaled == _sides(processor.get("crop_size")):
        processor["do_center_crop"] = False  # Kosmos-2's: all of what was squashed is cut out
    sides = processor.get("crop_size" if processor.get("do_center_crop") else "size") or size
    shortest = None if isinstance(sides, int) else sides.get("shortest_edge")
    height, width = (sides, sides) if isinstance(sides, int) else (sides.get("height"), sides.get("width"))
    height, width = height or shortest or size, width or shortest or size
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not processor.get(step, True):
            raise ConfigError(f"{step} is off in the picture processor; our encoders always do it")
    resample = processor.get("resample", 3)
    if resample not in _RESAMPLE:
        raise ConfigError(f"resample is {resample}; ours are 2 (bilinear) and 3 (bicubic)")
    mean = tuple(processor.get("image_mean") or (_CLIP_MEAN if clip else (0.5, 0.5, 0.5)))
    # transformers' LLaVA pads with the mean, cut to whole numbers.
    background = tuple(int(channel * 255) for channel in mean)
    fit = "pad" if processor.get("do_pad") else "crop" if processor.get("do_center_crop") else "squash"
    return ImageSpec(
        size=(height, width),
        fit=fit,
        mean=mean,  # type: ignore[arg-type]
        std=tuple(processor.get("image_std") or (_CLIP_STD if clip else (0.5, 0.5, 0.5))),  # type: ignore[arg-type]
        resample=_RESAMPLE[resample],  # type: ignore[arg-type]
        background=background,  # type: ignore[arg-type]
    )


def to_image_processor(spec: ImageSpec) -> dict[str, Any]:
    """The `preprocessor_config.json` that prepares pictures as `spec` says; the inverse of `image_spec`.

    Raises:
        ConfigError: pictures of any size: no processor of transformers for a fixed number of tokens does that.
    """
    if not spec.fixed:
        raise ConfigError(
            "pictures keep their size (fit 'native'), and transformers' LLaVA has one size; choose another"
        )
    height, width = spec.size
    square = {"height": height, "width": width}
    if spec.fit == "crop" and height != width:
        raise ConfigError(f"a centre crop to {height} × {width} has no short side to scale to; use a square size")
    return {
        "image_processor_type": "LlavaImageProcessor" if spec.fit == "pad" else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_center_crop": spec.fit == "crop",
        "do_pad": spec.fit == "pad",
        "size": {"shortest_edge": height} if spec.fit == "crop" else square,
        "crop_size": square,
        "resample": {name: number for number, name in _RESAMPLE.items()}[spec.resample],
        "rescale_factor": 1 / 255,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width, if a size has both: what is scaled without its aspect."""
    return (size["height"], size["width"]) if isinstance(size, Mapping) and "height" in size else None


def _activation(name: str) -> str:
    if name not in ("quick_gelu", "gelu", "gelu_pytorch_tanh"):
        raise ConfigError(f"hidden_act is {name!r}; ours are quick_gelu, gelu and gelu_pytorch_tanh")
    return name


def as_published(config: Vision.Config) -> Vision.Config:
    """The settings that decide what weights mean, without the choice of features.

    Two folders hold the same encoder if these are equal.
    """
    return replace(
        config,
        layer=-1,
        select="full",
        norm=False,
        keep_unused=False,
        head=False,
        source="",
        licence="",
        class_token=True,
        image=ImageSpec(size=(config.trained_size, config.trained_size)),
    )
