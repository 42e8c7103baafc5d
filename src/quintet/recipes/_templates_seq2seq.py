"""Templates of the encoder–decoders that learn by completing texts. Sources: each paper, as its recipe names it."""

from quintet.data.completion import Completion
from quintet.data.template import Frame, Template
from quintet.recipes._templates_regions import PALI_X_REGIONS

__all__ = ["PALI_X", "PALI_X_MIXTURE"]

PALI_X_MIXTURE = Template(
    name="pali_x_mixture",
    bos=False,
    answer="",
    end="</s>",
    joint="",
    place="front",
    added=Completion().added,
    regions=PALI_X_REGIONS,
)
"""<image>{task} to the encoder, {a}</s> from the decoder. A row of the mixture says its task itself, as in
"Generate the alt_text in EN at 0: " (from memory)."""

PALI_X = Template(
    name="pali_x",
    bos=False,
    user=Frame(before="Answer in EN: "),
    answer="",
    end="</s>",
    joint="",
    place="outside",
    added=PALI_X_MIXTURE.added,
    regions=PALI_X_REGIONS,
)
"""<image>Answer in EN: {q} to the encoder, {a}</s> from the decoder (from memory)."""
