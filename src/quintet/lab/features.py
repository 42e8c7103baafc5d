"""Whether to keep what a frozen encoder makes of the pictures, decided by arithmetic, and the pass that makes it."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from quintet import dist
from quintet.components.roles import ImageSpec
from quintet.data.features import FeatureCache, fingerprint
from quintet.data.media import load_image
from quintet.data.pipeline import Source, order
from quintet.errors import DataError
from quintet.model.mllm import MLLM
from quintet.pace import Pace
from quintet.training.hardware import autocast, pick_precision
from quintet.training.loop import Settings
from quintet.training.optim import rate_of
from quintet.training.stage import Stage
from quintet.values import Features, Ref

__all__ = ["Note", "keep_features"]

Note = Callable[[str], None]

BATCH = 32
"""Pictures that are encoded together, always as many: how a matrix product is cut, and with it a feature's last bit,
may depend on it, and a pass that was killed and goes on must make the same features."""

LARGEST = 8 * 2**30
"""Bytes of features beyond which none are kept: LLaVA-1.5's 558,128 pictures would take 658 GB."""


def keep_features(
    model: MLLM, stage: Stage, stages: Sequence[Stage], source: Source, *, settings: Settings, folder: Path, note: Note
) -> FeatureCache | None:
    """The filled cache of the image encoder, or None where it would not pay; `note` is told why.

    It pays when the encoder is frozen, its pictures have one size, each is met more than once (over epochs and over
    the stages that leave the encoder frozen), and the features fit.
    """
    if settings.features == "off" or "image" not in model.encoders:
        return None
    if stage.contrast is not None:
        note("features are not kept: the stage shows pictures that are made worse anew for every sample")
        return None
    spec, encoder = model.config.spec("image"), model.config.encoders["image"]
    parts = [part for part in model.parts() if f"{part}.".startswith("encoders.image.")]
    frozen = [s for s in stages if all(rate_of(part, s.train) is None for part in parts)]
    if stage not in frozen or not spec.fixed or getattr(model.connectors["image"], "sees_prompt", False):
        return None
    device = dist.device()
    precision = pick_precision(settings.precision, device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    met = min(len(source), stage.num_steps(len(source)) * stage.batch)
    visits = sum(s.num_steps(len(source)) * s.batch for s in frozen) / max(1, met)
    layout = encoder.layout(spec.size)
    size = met * layout.count * encoder.dim * dtype.itemsize
    free = shutil.disk_usage(
        folder if folder.exists() else folder.parent.parent if folder.parent.parent.exists() else Path.cwd()
    ).free
    facts = f"pictures of {met:,} rows, {layout.count} × {encoder.dim} features take {size / 2**20:,.0f} MiB"
    facts += f", and each is met {visits:.3g} times"
    if settings.features == "auto" and (visits < 1.5 or size > min(LARGEST, free // 4)):
        note(f"features are not kept: {facts}")
        return None
    note(f"features are kept: {facts}")
    cache = FeatureCache(
        folder,
        kind="image",
        encoder=fingerprint(model.encoders["image"], repr(encoder), dtype),
        dim=encoder.dim,
        dtype=dtype,
    )
    model.encoders.to(device)
    # The rows that the stage's steps begin with: more than them no step will ask for.
    rows = sorted(order(len(source), seed=settings.seed, epoch=0)[:met].tolist())
    _fill(cache, model, source, rows, spec, workers=settings.workers, precision=precision, note=note)
    return cache


def _fill(
    cache: FeatureCache,
    model: MLLM,
    source: Source,
    rows: Sequence[int],
    spec: ImageSpec,
    *,
    workers: int,
    precision: str,
    note: Note,
) -> None:
    def media() -> Iterator:
        for i in rows:
            try:
                yield from source.sample(i).media()
            except DataError:
                continue  # the loop drops and counts it

    missing = cache.missing(media())
    # Nobody writes before everybody has looked, or the lists, and with them the shares, would differ.
    dist.barrier()
    mine = missing[dist.rank() :: dist.world()]
    if mine:
        note(f"encoding {len(missing):,} pictures once")
    pace = Pace(note, "pictures encoded")

    def encode(refs: list[Ref]) -> Iterator[tuple[list[Ref], Features]]:
        loader = DataLoader(_Pictures(refs, spec), batch_size=BATCH, num_workers=workers, collate_fn=list)
        device = dist.device()
        for batch, loaded in enumerate(loader):
            pace(batch * BATCH, len(refs))
            good = [(ref, pixels) for ref, pixels in loaded if pixels is not None]
            if not good:
                continue
            with model.inference(), autocast(precision, device):  # type: ignore[arg-type]
                pixels = [pixels.to(device) for _, pixels in good]
                features = model.encoders["image"]((*pixels, *[pixels[-1]] * (BATCH - len(pixels))))
            count = sum(features.counts[: len(good)])
            yield [ref for ref, _ in good], Features(features.values[:count], features.layouts[: len(good)])

    if mine:
        cache.fill(mine, encode)
    dist.barrier()
    if dist.world() > 1:
        cache.reload()


class _Pictures(Dataset[tuple[Ref, torch.Tensor | None]]):
    def __init__(self, refs: list[Ref], spec: ImageSpec) -> None:
        self.refs, self.spec = refs, spec

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> tuple[Ref, torch.Tensor | None]:
        ref = self.refs[index]
        try:
            return ref, load_image(ref, self.spec)
        except DataError:
            return ref, None  # the loop meets it again, drops and counts it
