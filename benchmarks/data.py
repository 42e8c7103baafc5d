"""Pictures decoded, resized and normalised per second and core: ours against transformers' PIL image processors.

    python benchmarks/data.py [--repeat 9]

Photographs (scikit-image's, written as JPEG of three sizes) go from a file to the normalised float32 tensor
that the encoder's first layer reads: CLIP's fit (short side 224, centre), SigLIP's (224 × 224) and LLaVA-1.5's (padded
to a square with the mean colour, 336). One process, one thread, both sides in turns, in processor time; the best of
the repeats counts, since whatever else runs on the machine only takes away from it. First every pixel is compared. The
last line is JSON; its `ratio` is the worst of the three.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.roles import ImageSpec
from quintet.data.media import load_image
from quintet.values import Ref

SIZES = (320, 640, 1024)
MAX_LEVELS = 2
"""Largest difference of a pixel, in levels of 255; torch's 8-bit filter has 16-bit weights, Pillow's has 32."""
MAX_SHARE = 0.01
"""Largest share of values that differ at all."""


@dataclass(frozen=True)
class Case:
    """One way of preparing a picture, on both sides."""

    name: str
    spec: ImageSpec
    reference: Any

    @cached_property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """The encoder's own last step, of which only mean and deviation matter here."""
        return replace(CLIP_L_336.tiny(), image=self.spec).build().normalise

    def ours(self, files: list[Path]) -> Tensor:
        """float32[N, 3, H, W], picture by picture like the reference."""
        return torch.cat([self.normalise(load_image(Ref(file.name, file), self.spec)[None]) for file in files])

    def theirs(self, files: list[Path]) -> Tensor:
        """The same by the image processor."""
        return torch.cat([self.reference(Image.open(file), return_tensors="pt")["pixel_values"] for file in files])


def cases() -> list[Case]:
    """CLIP, SigLIP, LLaVA-1.5."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    colour = (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255))
    square = {"height": 336, "width": 336}
    return [
        Case("clip", ImageSpec(size=(224, 224), fit="crop", mean=mean, std=std), CLIPImageProcessorPil()),
        Case("siglip", ImageSpec(size=(224, 224), fit="squash"), SiglipImageProcessorPil()),
        Case(
            "llava",
            ImageSpec(size=(336, 336), fit="pad", mean=mean, std=std, background=colour),
            LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 336}, crop_size=square),
        ),
    ]


def photographs(folder: Path) -> list[Path]:
    """JPEG files of the widths `SIZES`."""
    from skimage import data

    files = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        picture = Image.fromarray(getattr(data, name)())
        for width in SIZES:
            file = folder / f"{name}_{width}.jpg"
            picture.resize((width, round(width * picture.height / picture.width))).save(file, quality=92)
            files.append(file)
    return files


def difference(case: Case, files: list[Path]) -> tuple[float, float]:
    """Largest difference in levels of 255, and the share of values that differ by half a level or more."""
    std = torch.tensor(case.spec.std)[:, None, None]
    levels = (case.ours(files) - case.theirs(files)).abs() * std * 255
    return float(levels.max()), float((levels >= 0.5).float().mean())


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one run: what one core gives, whoever else is on the machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(case: Case, files: list[Path], *, repeat: int) -> dict[str, float]:
    """Pictures per second on both sides, and what they differ by."""
    levels, share = difference(case, files)
    # A difference of exactly MAX_LEVELS comes back from float32 a few millionths larger.
    if levels > MAX_LEVELS + 0.01 or share > MAX_SHARE:
        raise SystemExit(f"{case.name}: pixels differ by {levels:.2f} levels, at {share:.2%} of the values")
    ours, theirs = [], []
    for _ in range(repeat):
        ours.append(seconds(lambda: case.ours(files)))
        theirs.append(seconds(lambda: case.theirs(files)))
    return {
        "ours_per_second": round(len(files) / min(ours), 1),
        "reference_per_second": round(len(files) / min(theirs), 1),
        "ratio": round(min(theirs) / min(ours), 2),
        "max_levels": round(levels, 2),
        "differing_share": round(share, 5),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Pictures per second and core, against transformers.")
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder))
        results = {case.name: measure(case, files, repeat=repeat) for case in cases()}
    for name, result in results.items():
        print(f"{name:8}", result)
    print(
        json.dumps(
            {
                "benchmark": "data",
                "ratio": min(result["ratio"] for result in results.values()),
                "of": "pictures decoded, resized and normalised per second and core, ours / transformers' PIL image "
                "processor; the worst of CLIP, SigLIP and LLaVA-1.5",
                "unit": "pictures per second per core",
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
