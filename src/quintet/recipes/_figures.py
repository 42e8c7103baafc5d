"""Figures of papers as text, so that a reader sees what is held against what.

"3.15 M"                              printed: ours is within 1 %, or the recipe says why not
"768 · 4096 + 4096"                   arithmetic on published code or tables
"105,165,056: twelve layers of BERT"  the same, and what it is
"""

import ast
import operator
import re

from quintet.errors import ConfigError

__all__ = ["ENCODERS", "agrees", "arithmetic", "printed"]

ENCODERS = {
    "openai/clip-vit-large-patch14": "304.0 M",
    "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": "197.4 M",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": "1,844.9 M",
}
"""Weights → parameters in the survey's table of encoders. They are counted whole, with the projection to where pictures
and captions are compared. ConvNeXt-L's figure has a linear one, 1536 · 768 (`convnext_large` in OpenCLIP's
`docs/model_profile.csv`); at 320 px what was released (`convnext_large_d_320`) has an MLP there, and is 199.8 M."""

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
_SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow}


def printed(text: str) -> tuple[float, float]:
    """What a printed figure says, and half a unit of its last digit.

    >>> printed("3.15 M"), printed("1,844.9 M")
    ((3150000.0, 5000.0), (1844900000.0, 50000.0))

    Raises:
        ConfigError: it is not a number with K, M, B or nothing behind it.
    """
    found = re.fullmatch(r"([\d,]+)(?:\.(\d+))?(?: ([KMB]))?", text)
    if found is None:
        raise ConfigError(f"{text!r} is no printed figure; write it as the paper does, '3.15 M' or '1.9 B'")
    whole, places, unit = found[1].replace(",", ""), found[2] or "", _UNITS[found[3] or ""]
    return float(f"{whole}.{places or 0}") * unit, 0.5 * unit / 10 ** len(places)


def agrees(found: int, text: str) -> bool:
    """Whether a figure of ours is within 1 % of the printed one.

    >>> agrees(186_705_470, "188 M"), agrees(1_229_760, "1.2 M"), agrees(196_979_200, "194 M")
    (True, False, False)
    """
    value, _ = printed(text)
    return abs(found - value) <= 0.01 * value


def arithmetic(text: str) -> int:
    """What comes out: whole numbers, +, −, ·, powers and brackets; behind a colon stands what it is.

    >>> arithmetic("2 · (4096² + 8): two layers")
    33554448

    Raises:
        ConfigError: it cannot be computed.
    """
    terms = text.partition(":")[0].replace("·", "*").replace("²", "**2").replace("−", "-").replace(",", "")
    try:
        return _value(ast.parse(terms.strip(), mode="eval").body)
    except (SyntaxError, KeyError):
        raise ConfigError(f"{text!r} cannot be computed; write numbers with +, −, ·, ² and brackets") from None


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return _SIGNS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    raise KeyError(ast.dump(node))
