"""Published models that tell of a picture in words: one that captions, one that detects, by transformers' classes.

They load when they first read, from a folder or the hub's cache; nothing is downloaded here. Pictures are read one by
one: what is said of one must not depend on which others stand beside it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from quintet import dist
from quintet.components.experts.expert import ExpertConfig
from quintet.errors import ConfigError

__all__ = ["Captioner", "Detector"]


class Captioner:
    """One greedy caption of a picture, by any class behind transformers' `AutoModelForImageTextToText`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ExpertConfig):
        """How it is asked."""

        prompt: str = ""
        """Words that its caption goes on from, for captioners that take some ("a photography of")."""
        tokens: int = 40
        """Most tokens of a caption."""

        @property
        def writes(self) -> Literal["caption"]:
            return "caption"

        def build(self) -> "Captioner":
            return Captioner(self)

    def __init__(self, config: Config) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.config = config
        self.processor, self.model = _load(config.source, AutoProcessor, AutoModelForImageTextToText)

    @torch.no_grad()
    def __call__(self, value: Tensor) -> str:
        words = {"text": self.config.prompt} if self.config.prompt else {}
        inputs = self.processor(images=_picture(value), **words, return_tensors="pt").to(self.model.device)
        ids = self.model.generate(**inputs, max_new_tokens=self.config.tokens, do_sample=False, num_beams=1)
        return self.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


class Detector:
    """The objects in a picture with their boxes, by any class behind `AutoModelForObjectDetection` (DETR's family).

    Source of the spelling: the boxes that LLaVA gave to GPT-4 as text (Liu et al. 2023, arXiv:2304.08485, table 1).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ExpertConfig):
        """What counts as found."""

        confidence: float = 0.7
        """Least probability of an object, 0 to 1."""
        most: int = 30
        """Objects that are named, the surest first."""

        @property
        def writes(self) -> Literal["objects"]:
            return "objects"

        def build(self) -> "Detector":
            return Detector(self)

    def __init__(self, config: Config) -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        self.config = config
        self.processor, self.model = _load(config.source, AutoImageProcessor, AutoModelForObjectDetection)

    @torch.no_grad()
    def __call__(self, value: Tensor) -> str:
        inputs = self.processor(images=_picture(value), return_tensors="pt").to(self.model.device)
        height, width = value.shape[1:]
        (found,) = self.processor.post_process_object_detection(
            self.model(**inputs), threshold=self.config.confidence, target_sizes=[(height, width)]
        )
        surest = found["scores"].argsort(descending=True, stable=True)[: self.config.most]
        size = torch.tensor([width, height, width, height])
        names = self.model.config.id2label
        return spelt(
            [
                (names[int(found["labels"][i])], (found["boxes"][i].cpu() / size).clamp(0, 1).tolist())
                for i in surest.tolist()
            ]
        )


def spelt(found: list[tuple[str, list[float]]]) -> str:
    """Objects with their boxes, in shares of the picture.

    >>> spelt([("dog", [0.125, 0.25, 0.5, 1.0]), ("cat", [0.0, 0.0, 0.1, 0.1])])
    'dog [0.12, 0.25, 0.50, 1.00]; cat [0.00, 0.00, 0.10, 0.10]'
    """
    return "; ".join(f"{name} [{', '.join(f'{share:.2f}' for share in box)}]" for name, box in found)


def _picture(value: Tensor) -> Image.Image:
    return Image.fromarray(value.permute(1, 2, 0).contiguous().numpy())


def _load(source: str, processor: Any, model: Any) -> tuple[Any, Any]:
    """The processor and the model of published weights that are on this machine.

    Raises:
        ConfigError: they are not, or are of another kind.
    """
    try:
        made = processor.from_pretrained(source, local_files_only=True)
        loaded = model.from_pretrained(source, local_files_only=True, use_safetensors=True)
    # A damaged file of a tokenizer ends in any of Python's errors (`components/tokenizer_folder.py`).
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"the expert {source!r} cannot be loaded ({type(error).__name__}: {reason}); pass --download to "
            f"`quintet train` to fetch it, or name a local folder of a model that {model.__name__} reads"
        ) from None
    return made, loaded.to(dist.device()).eval()
