"""The starter vision encoder: a small CLIP-shaped ViT that learns what every patch of a Scenes picture shows.

It never sees a word: small heads, thrown away afterwards, read from each patch's feature what is centred there (an
object, a digit, a written word), its colour, shape, size, value and box, and what covers the patch. They read the
penultimate layer, which LLaVA takes, and the last one, which others take; the class token learns which of the 48 kinds
of object are present.
"""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.data.scenes import OBJECTS, SHAPES, SIZES, WORDS, World, dense_labels, render, sample_scene
from quintet.data.scenes.vocabulary import COLOURS

__all__ = ["Heads", "Pictures", "VisionSchedule", "make_pictures", "train_vision", "vision_scores"]

HEADS = {"kind": 4, "colour": len(COLOURS), "shape": len(SHAPES), "size": len(SIZES), "digit": 10, "word": len(WORDS)}
COVERS = {"cover_colour": len(COLOURS) + 1, "cover_shape": len(SHAPES) + 1}


@dataclass
class Pictures:
    """Rendered scenes and their labels: `pixels` uint8[N, 3, H, W], `labels` int8[N, cells²] by name, `box` float16."""

    pixels: Tensor
    labels: dict[str, Tensor]
    box: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def make_pictures(n: int, *, seed: int, split: str = "train", world: World | None = None, workers: int = 1) -> Pictures:
    """`n` random scenes; `seed` decides them all."""
    world = world or World()
    jobs = [(world, seed, split, start, min(n, start + 500)) for start in range(0, n, 500)]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(_pictures, jobs))
    else:
        made = [_pictures(job) for job in jobs]
    columns = {k: torch.from_numpy(np.concatenate([m[k] for m in made])) for k in made[0]}
    pixels, box, present = columns.pop("pixels"), columns.pop("box"), columns.pop("present")
    return Pictures(pixels, columns, box, present)


def _pictures(job: tuple[World, int, str, int, int]) -> dict[str, np.ndarray]:
    world, seed, split, start, stop = job
    cells = world.size // 8
    rows: list[dict[str, np.ndarray]] = []
    for i in range(start, stop):
        scene = sample_scene(world, random.Random(f"{seed}/{split}/{i}"), split)
        labels = dense_labels(scene, cells)
        row: dict[str, np.ndarray] = {
            k: v.reshape(cells * cells).astype(np.int8) for k, v in labels.items() if k != "box"
        }
        row["kind"] = (1 * (row["colour"] >= 0) + 2 * (row["digit"] >= 0) + 3 * (row["word"] >= 0)).astype(np.int8)
        row["box"] = labels["box"].reshape(cells * cells, 4).astype(np.float16)
        names = {f"{o.colour} {o.shape}" for o in scene.objects}
        row["present"] = np.array([name in names for name in OBJECTS], dtype=np.uint8)
        row["pixels"] = np.asarray(render(scene), dtype=np.uint8).transpose(2, 0, 1)
        rows.append(row)
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}


class Heads(nn.Module):
    """Linear readers of patch features, with a norm of their own since a middle layer has none."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleDict({k: nn.Linear(dim, n) for k, n in (HEADS | COVERS).items()})
        self.box = nn.Linear(dim, 4)

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        x = self.norm(patches.float())
        return {k: head(x) for k, head in self.heads.items()} | {"box": self.box(x)}


def _loss(out: dict[str, Tensor], batch: Pictures) -> Tensor:
    """Sum of the heads' losses, each a mean over the patches that it is defined on."""
    total = F.cross_entropy(out["kind"].flatten(0, 1), batch.labels["kind"].long().flatten(), weight=_KIND_WEIGHT)
    for name in COVERS:
        total = total + 0.5 * F.cross_entropy(out[name].flatten(0, 1), batch.labels[name].long().flatten() + 1)
    for name in ("colour", "shape", "size", "digit", "word"):
        known = batch.labels[name] >= 0
        if known.any():
            total = total + F.cross_entropy(out[name][known], batch.labels[name][known].long(), label_smoothing=0.02)
    known = batch.labels["kind"] > 0
    return total + 5.0 * F.l1_loss(out["box"][known], batch.box[known].float())


_KIND_WEIGHT = torch.tensor([0.3, 1.0, 1.0, 1.0])


@dataclass(frozen=True)
class VisionSchedule:
    """How long the encoder learns. `pictures` are rendered once and met several times."""

    steps: int = 2400
    pictures: int = 48_000
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    workers: int = 2


def train_vision(
    model: Any, schedule: VisionSchedule, *, progress: Callable[[int, float, float, float], None] | None = None
) -> tuple[dict[str, float], nn.Module]:
    """Trains a transformers CLIPVisionModel in place; returns the facts of the run and the penultimate layer's heads.

    `progress(step, share, loss, pictures_per_second)` is told every 50 steps.
    """
    torch.manual_seed(schedule.seed)
    pool = make_pictures(schedule.pictures, seed=schedule.seed, workers=schedule.workers)
    dim = model.config.hidden_size
    heads = nn.ModuleList([Heads(dim), Heads(dim)])
    present = nn.Linear(dim, len(OBJECTS))
    params = [*model.parameters(), *heads.parameters(), *present.parameters()]
    optimizer = torch.optim.AdamW(params, lr=schedule.lr, betas=(0.9, 0.98), weight_decay=schedule.weight_decay)
    start, step, seen = time.monotonic(), 0, 0
    for batch in _shuffled(pool, schedule.batch, schedule.seed):
        if step == schedule.steps:
            break
        share = step / schedule.steps
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * share)))
        with torch.autocast("cpu", torch.bfloat16):
            out = model(pixel_values=_normalised(batch.pixels, jitter=True), output_hidden_states=True)
            last = (
                model.post_layernorm(out.last_hidden_state)
                if hasattr(model, "post_layernorm")
                else out.last_hidden_state
            )
            found = present(out.pooler_output)
        loss = _loss(heads[0](out.hidden_states[-2][:, 1:]), batch) + 0.5 * _loss(heads[1](last[:, 1:]), batch)
        loss = loss + F.binary_cross_entropy_with_logits(found.float(), batch.present.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + len(batch)
        if progress and step % 50 == 0:
            progress(step, share, float(loss), seen / (time.monotonic() - start))
    return {"steps": step, "pictures": seen, "seconds": round(time.monotonic() - start)}, heads[0]


def _shuffled(pool: Pictures, batch: int, seed: int) -> Iterator[Pictures]:
    random_ = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(pool), generator=random_)
        for at in order.split(batch):
            yield Pictures(pool.pixels[at], {k: v[at] for k, v in pool.labels.items()}, pool.box[at], pool.present[at])


def _normalised(pixels: Tensor, *, jitter: bool = False) -> Tensor:
    """uint8[N, 3, H, W] → float32 with mean and deviation 0.5; `jitter` varies light, contrast and grain a little."""
    x = (pixels.float() / 255 - 0.5) / 0.5
    if jitter:
        n = len(x)
        x = x * (1 + 0.2 * (torch.rand(n, 1, 1, 1) - 0.5)) + 0.2 * (torch.rand(n, 1, 1, 1) - 0.5)
        x = x + 0.05 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)
    return x


@torch.no_grad()
def vision_scores(model: Any, heads: nn.Module, pictures: Pictures) -> dict[str, float]:
    """Accuracy of each head of the penultimate layer, 0 to 1, and the mean box error in shares of the side."""
    right: dict[str, list[float]] = {}
    for at in torch.arange(len(pictures)).split(200):
        out = model(pixel_values=_normalised(pictures.pixels[at]), output_hidden_states=True)
        found = heads(out.hidden_states[-2][:, 1:])
        for name in HEADS:
            known = pictures.labels[name][at] >= 0
            if name == "kind":
                same = (found[name].argmax(-1) == pictures.labels[name][at]).all(1)
            else:
                same = found[name].argmax(-1)[known] == pictures.labels[name][at][known]
            right.setdefault("all_centres" if name == "kind" else name, []).extend(same.tolist())
        known = pictures.labels["kind"][at] > 0
        right.setdefault("box_error", []).extend(
            (found["box"][known] - pictures.box[at][known].float()).abs().mean(-1).tolist()
        )
    return {name: float(np.mean(values)) for name, values in right.items()}
