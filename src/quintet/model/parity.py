"""Runs a model and its transformers twin on the same random inputs and keeps the largest difference of their logits.

Rows differ in text, in number of pictures and in where the pictures stand, so a tower, a projector or a splice that is
wrong anywhere shows. Letters: T columns, V vocabulary.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintet.components.encoders.pixels import Pixels
from quintet.components.encoders.tiles import Tiles
from quintet.components.encoders.vision import Vision
from quintet.errors import CheckpointError
from quintet.model.mllm import MLLM
from quintet.values import Batch, Features, MediaBatch, Targets

__all__ = ["Parity", "verify"]

ROWS = ((3, 1, 4), (5, 2, 0), (2, 3, 2, 1), (9,))
"""Words between pictures: three, a picture, one, a picture, four; and so on. The last row has no picture."""
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


def verify(
    model: MLLM, folder: Path, *, image_token_id: int, newline_token_id: int | None = None, seed: int = 0
) -> Parity:
    """Compares the model with the folder as transformers loads it. Fuyu also needs the token that ends a row.

    Raises:
        CheckpointError: transformers finds missing, unexpected or misshapen weights, or the logits differ.
    """
    reference = _reference(folder)
    dtype = next(model.llm.parameters()).dtype
    if dtype != torch.float32 and sum(p.numel() for p in model.parameters()) < LARGE:
        dtype = torch.float32
    ours = model if next(model.llm.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
    reference = reference.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    worst = largest = effect = 0.0
    shapes = []
    with ours.inference():
        for words in ROWS:
            row = _Row.random(words, model, image_token_id, generator)
            theirs = row.through(reference, ours, newline_token_id)
            mine = ours.logits(ours(row.batch()).hidden)[0]
            worst = max(worst, float((mine - theirs[:, : mine.shape[1]]).abs().max()))
            largest = max(largest, float(mine.abs().max()))
            other = ours.logits(ours(row.with_other_pictures().batch()).hidden)[0]
            effect = max(effect, float((mine - other).abs().max()))
            shapes.append({"columns": len(row.tokens), "pictures": len(row.pictures)})
    found = Parity(
        worst, largest, effect, str(dtype).removeprefix("torch."), tuple(shapes), seed, type(reference).__name__
    )
    if not worst <= TOLERANCES[dtype] * largest:
        raise CheckpointError(
            f"the logits of {folder} and of the model differ by {worst:.3g} ({found.dtype}, largest logit "
            f"{largest:.3g}); at most {TOLERANCES[dtype] * largest:.3g} was expected"
        )
    return found


def _reference(folder: Path) -> Any:
    """The folder as transformers loads it, whole."""
    from transformers import AutoModelForImageTextToText

    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
    )
    model, info = loaded
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise CheckpointError(f"transformers does not load {folder} whole: {wrong}")
    if getattr(model.config, "vision_feature_layer", None) == 0:
        # transformers 5.23 takes a 0 for "no hidden states"; from the end it means the same.
        model.config.vision_feature_layer = -1 - model.config.vision_config.num_hidden_layers
    return model.eval()


@dataclass(frozen=True)
class _Row:
    """One row of random words and pictures."""

    tokens: Tensor
    pictures: tuple[Tensor, ...]
    slots: Tensor
    counts: tuple[int, ...]
    """Columns of each picture."""

    @classmethod
    def random(cls, words: tuple[int, ...], model: MLLM, image_token_id: int, generator: torch.Generator) -> "_Row":
        """`words` text tokens between pictures of the size that the encoder takes, or of several if it takes any."""
        spec = model.config.spec("image")
        height, width = spec.size
        # Upright, wide and narrow: other canvases, and other rows and columns of padding.
        several = ((height, width), (height // 2, width - 3), (height - 1, width // 3))
        if isinstance(encoder := model.config.encoders["image"], Pixels.Config):
            several = tuple((rows * encoder.patch, cols * encoder.patch) for rows, cols in ((3, 5), (1, 2), (4, 1)))
        sizes = [spec.size if spec.fixed else several[n % len(several)] for n, _ in enumerate(words[1:], len(words))]
        counts = tuple(model.config.columns("image", size) for size in sizes)
        pieces: list[Tensor] = []
        for number, length in enumerate(words):
            if number:
                pieces.append(torch.full((counts[number - 1],), image_token_id))
            # Ids below the image token, or above it where it is the first of all.
            ids = torch.randint(0, model.llm.vocab - 1, (length,), generator=generator)
            pieces.append(ids + (ids >= image_token_id))
        tokens = torch.cat(pieces)
        pictures = tuple(torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes)
        return cls(tokens, pictures, (tokens == image_token_id).nonzero()[:, 0], counts)

    def with_other_pictures(self) -> "_Row":
        """The same words with every picture inverted."""
        return replace(self, pictures=tuple(255 - picture for picture in self.pictures))

    def batch(self) -> Batch:
        """The row for our model. An image token past our vocabulary becomes 0: its embedding is written over."""
        columns = torch.arange(len(self.tokens))[None]
        zeros = torch.zeros_like(columns)
        place = torch.zeros(len(self.pictures), dtype=torch.int64)
        tokens = self.tokens.clone()
        tokens[self.slots] = 0
        media = MediaBatch(
            values=self.pictures,
            slots=self.slots,
            counts=self.counts,
            row=place,
            enter=place,
            exit=place + 1,
            order=torch.stack([columns[0] for columns in self.slots.split(self.counts)]) if self.counts else place,
        )
        nothing = torch.zeros(0, dtype=torch.int64)
        return Batch(
            tokens=tokens[None],
            enter=zeros,
            exit=zeros + 1,
            order=columns,
            positions=columns,
            targets=Targets(nothing, nothing, nothing.float(), nothing),
            media={"image": media} if self.pictures else {},
            lengths=(len(tokens),),
        )

    def through(self, reference: Any, model: MLLM, newline_token_id: int | None) -> Tensor:
        """The reference's logits float32[T, V]."""
        inputs: dict[str, Tensor] = {"input_ids": self.tokens[None].clone()}
        encoder = model.encoders["image"]
        if self.pictures and isinstance(encoder, Pixels):
            assert newline_token_id is not None
            features = encoder(self.pictures)
            # The last of each row's columns; the others are patches.
            ends = torch.cat([(torch.arange(r * (c + 1)) + 1) % (c + 1) == 0 for r, c in _grids(features)])
            inputs["input_ids"][0, self.slots[ends]] = newline_token_id
            inputs["pixel_values"] = features.values[None].to(reference.dtype)
        elif self.pictures:
            pixels = torch.stack(self.pictures) if isinstance(encoder, Vision) else None
            if isinstance(encoder, Tiles):
                views = [torch.stack(encoder.divided(picture)) for picture in self.pictures]
                pixels = torch.nn.utils.rnn.pad_sequence(views, batch_first=True)
                inputs["image_sizes"] = torch.tensor([picture.shape[1:] for picture in self.pictures])
                encoder = encoder.encoder
            assert isinstance(encoder, Vision)
            assert pixels is not None
            inputs["pixel_values"] = encoder.normalise(pixels).to(reference.dtype)
        return reference(**inputs).logits[0].float()


def _grids(features: Features) -> list[tuple[int, ...]]:
    return [layout.grid for layout in features.layouts]
