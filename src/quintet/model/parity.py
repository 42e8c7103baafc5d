"""Runs a model and its transformers twin on the same random inputs and keeps the largest difference of their logits.

Rows differ in text, in number of pictures and in where the pictures stand, so a tower, a projector or a splice that is
wrong anywhere shows. Letters: T columns, V vocabulary.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintet.components.connectors.qformer import QFormer
from quintet.components.encoders.pixels import Pixels
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.errors import CheckpointError
from quintet.model.families import family
from quintet.model.family import DERIVED, Facts, Row
from quintet.model.mllm import MLLM

__all__ = ["Parity", "verify"]

ROWS = ((3, 1, 4), (5, 2, 0), (2, 3, 2, 1), (9,))
"""Words between pictures: three, a picture, one, a picture, four; and so on. The last row has no picture."""
ANSWER = 3
"""Tokens of an answer, for an encoder–decoder."""
LARGE = 1_000_000_000
"""Weights from which a 16-bit model is compared in 16 bits: twice in float32 would not fit common machines."""
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Allowed difference as a share of the largest logit. Both sides do the same sums in the same type, in kernels that may
round differently; on one machine float32 was measured at 0 (tests/parity/test_llava.py)."""


@dataclass(frozen=True)
class Parity:
    """What was compared and how near it is."""

    max_abs_logit_difference: float
    max_abs_logit: float
    picture_effect: float
    """How much the logits change with other pictures: what a wrong tower or projector would be seen by."""
    dtype: str
    shapes: tuple[dict[str, int], ...] = ()
    """Columns and pictures of each row that was tried."""
    seed: int = 0
    reference: str = "LlavaForConditionalGeneration"
    """Class of transformers."""

    def proved(self, folder: Path) -> "Parity":
        """Itself, if the two are near, and would not be if a part of the model were wrong.

        Raises:
            CheckpointError: the logits differ, are not finite or all 0, or no picture changes any.
        """
        worst, largest, effect = self.max_abs_logit_difference, self.max_abs_logit, self.picture_effect
        if not all(math.isfinite(value) for value in (worst, largest, effect)):
            raise CheckpointError(
                f"the logits of {folder} or of the model are not finite ({self.dtype}; largest {largest:.3g}, largest "
                f"difference {worst:.3g}): weights that large overflow; nothing can be compared"
            )
        allowed = TOLERANCES[getattr(torch, self.dtype)] * largest
        if worst > allowed:
            raise CheckpointError(
                f"the logits of {folder} and of the model differ by {worst:.3g} ({self.dtype}, largest logit "
                f"{largest:.3g}); at most {allowed:.3g} was expected"
            )
        if not largest or not effect:
            what = "all logits are 0" if not largest else "no logit changes with the pictures"
            raise CheckpointError(
                f"{what} in {folder} and in the model, so equal logits prove nothing: look for weights that are all 0 "
                "(the head, the connector, gates of cross-attention that were never trained)"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """parity.json."""
        return {
            "max_abs_logit_difference": self.max_abs_logit_difference,
            "max_abs_logit": self.max_abs_logit,
            "picture_effect": self.picture_effect,
            "dtype": self.dtype,
            "shapes": list(self.shapes),
            "seed": self.seed,
            "reference": f"transformers {self.reference}",
        }


def verify(model: MLLM, folder: Path, facts: Facts, *, seed: int = 0) -> Parity:
    """Compares the model with the folder as transformers loads it.

    Raises:
        CheckpointError: transformers finds missing, unexpected or misshapen weights, or the logits are not
            `Parity.proved`.
    """
    published = family(facts.kind, where=folder)
    reference = _reference(folder, facts)
    dtype = next(model.llm.parameters()).dtype
    if dtype != torch.float32 and sum(p.numel() for p in model.parameters()) < LARGE:
        dtype = torch.float32
    ours = model if next(model.llm.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
    reference = reference.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    differences, sizes, effects, shapes = [], [], [], []
    with ours.inference():
        for words in ROWS:
            row = _random(words, model, facts, generator)
            inputs = published.inputs(ours, row, facts)
            inputs = {n: value.to(dtype) if value.is_floating_point() else value for n, value in inputs.items()}
            theirs = reference(**inputs).logits[0].float()
            mine = ours.logits(ours(row.batch()).hidden[0, row.read()])
            differences.append((mine - theirs[:, : mine.shape[1]]).abs().max())
            sizes.append(mine.abs().max())
            other = ours.logits(ours(row.with_other_pictures().batch()).hidden[0, row.read()])
            effects.append((mine - other).abs().max())
            shapes.append({"columns": len(row.tokens), "pictures": len(row.pictures)})
    # torch's maximum keeps a NaN, Python's loses it.
    worst, largest, effect = (float(torch.stack(values).max()) for values in (differences, sizes, effects))
    found = Parity(
        worst, largest, effect, str(dtype).removeprefix("torch."), tuple(shapes), seed, type(reference).__name__
    )
    return found.proved(folder)


def _reference(folder: Path, facts: Facts) -> Any:
    """The folder as transformers loads it, whole."""
    from transformers import AutoModelForImageTextToText

    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
    )
    model, info = loaded
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    wrong["unexpected_keys"] = [name for name in wrong["unexpected_keys"] if not name.endswith(DERIVED)]
    if any(wrong.values()):
        raise CheckpointError(f"transformers does not load {folder} whole: {wrong}")
    if getattr(model.config, "vision_feature_layer", None) == 0:
        # transformers 5.23 takes a 0 for "no hidden states"; from the end it means the same.
        model.config.vision_feature_layer = -1 - model.config.vision_config.num_hidden_layers
    if getattr(model.config, "image_token_index", 0) is None:
        # Folders of before transformers 4.46: without it, the class puts pictures nowhere.
        model.config.image_token_index = facts.image_token_id
    return model.eval()


def _random(words: tuple[int, ...], model: MLLM, facts: Facts, generator: torch.Generator) -> Row:
    """`words` text tokens between pictures of the size that the encoder takes, or of several if it takes any.

    An encoder–decoder gets an answer behind them; a connector that reads an instruction gets one a picture.
    """
    spec = model.config.spec("image")
    height, width = spec.size
    # Upright, wide and narrow: other canvases, and other rows and columns of padding.
    several = ((height, width), (height // 2, width - 3), (height - 1, width // 3))
    if isinstance(encoder := model.config.encoders["image"], Pixels.Config):
        several = tuple((rows * encoder.patch, cols * encoder.patch) for rows, cols in ((3, 5), (1, 2), (4, 1)))
    sizes = [spec.size if spec.fixed else several[n % len(several)] for n, _ in enumerate(words[1:], len(words))]
    counts = tuple(model.config.columns("image", size) for size in sizes)
    answer = ANSWER if isinstance(model.llm, HFSeq2Seq) else 0

    def text(length: int) -> Tensor:
        # Not the image token, nor the two below the rest that may be padding, which moves positions.
        ids = torch.randint(2, model.llm.vocab - 1, (length,), generator=generator)
        return ids + (ids >= facts.image_token_id)

    pieces: list[Tensor] = []
    for number, length in enumerate(words):
        if number:
            pieces.append(torch.full((counts[number - 1],), facts.image_token_id))
        pieces.append(text(length))
    tokens = torch.cat(pieces)
    slots = (tokens == facts.image_token_id).nonzero()[:, 0]
    pictures = tuple(torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes)
    connector = model.config.connectors["image"]
    prompts: tuple[Tensor, ...] = ()
    if connector.sees_prompt:
        rows = connector.words if isinstance(connector, QFormer.Config) and connector.words else model.llm.vocab
        prompts = tuple(torch.randint(0, rows, (len(words) + 1,), generator=generator) for _ in pictures)
    return Row(torch.cat([tokens, text(answer)]), pictures, slots, counts, prompts, answer)
