"""The published classes that go in and out, by the `model_type` of their `config.json`: a file and a line each."""

from collections.abc import Mapping

from quintet.errors import CheckpointError
from quintet.model import blip2, fuyu, idefics, kosmos2, llava
from quintet.model.family import Family

__all__ = ["FAMILIES", "family"]

FAMILIES: Mapping[str, Family] = {
    "llava": llava,
    "llava_next": llava,
    "fuyu": fuyu,
    "blip-2": blip2,
    "instructblip": blip2,
    "idefics": idefics,
    "kosmos-2": kosmos2,
}


def family(kind: object, *, where: object) -> Family:
    """The family of a `model_type`, which was found at `where`.

    Raises:
        CheckpointError: none that goes in or out.
    """
    if kind not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise CheckpointError(
            f"{where} has model_type {kind!r}; expected one of {known}, as transformers saves these classes (a release "
            "in its authors' own layout is read with --as RECIPE)"
        )
    return FAMILIES[str(kind)]
