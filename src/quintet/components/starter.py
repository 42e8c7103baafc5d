"""The trained small parts that ship with the package: a vision encoder, an LLM and its tokenizer.

They were made by `quintet starter build`; the card beside their files says from what, how long, and what they score.
"""

from importlib.resources import files
from pathlib import Path

from quintet.components.encoders.vision import Vision
from quintet.components.llms.decoder import Decoder
from quintet.components.roles import ImageSpec

__all__ = ["STARTER_LLM", "STARTER_VISION", "asset"]

STARTER_VISION = Vision.Config(
    family="clip",
    width=192,
    depth=5,
    heads=6,
    ffn=768,
    patch=8,
    trained_size=64,
    act="quick_gelu",
    eps=1e-5,
    image=ImageSpec(size=(64, 64), fit="pad", background=(127, 127, 127)),
    source="starter/vision",
    licence="apache-2.0",
)
"""64 × 64 pixels, 8 × 8 patches."""

STARTER_LLM = Decoder.Config(
    family="llama",
    vocab=738,
    dim=192,
    depth=4,
    heads=6,
    kv_heads=6,
    ffn=512,
    tie_head=True,
    max_positions=4096,
    source="starter/llm",
    licence="apache-2.0",
)
"""Four layers, 192 wide; its vocabulary is the starter tokenizer's."""


def asset(name: str) -> Path:
    """The path of a file that ships with the package."""
    return Path(str(files("quintet") / "starter" / name))
