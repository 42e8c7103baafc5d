"""The contract of columns: for every size that occurs, encoder and connector run and make what the text reserves."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from quintet.data.media import image_size, load_image
from quintet.lab.doctor.findings import Finding
from quintet.model.mllm import MLLM
from quintet.values import Features, Item, Layout, Origin

__all__ = ["columns", "columns_on_meta"]

SIZES = 16
"""Sizes of one modality that are run, from the smallest to the largest."""
LARGEST = 4096
"""Features of an item beyond which it is not run: attention among them would not fit a small machine."""

Sizes = Mapping[tuple[str, tuple[int, ...]], tuple[Item, Origin]]


def columns(model: MLLM, sizes: Sizes) -> tuple[list[Finding], str]:
    """Runs one item of every size, all of one modality in one call, and compares item by item.

    Returns the findings and a note of what was run.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    for kind in sorted({kind for kind, _ in sizes}):
        own = _by_run_size(kind, [found for (k, _), found in sizes.items() if k == kind], model.config)
        run = {size: found for size, found in own.items() if model.config.layout(kind, size).count <= LARGEST}
        chosen = _spread(sorted(run, key=lambda size: (_area(size), size)))
        notes.append(f"{len(chosen)} of {len(own)} sizes of {kind}")
        values = []
        for size in chosen:
            item, origin = run[size]
            value = load_image(item.ref, model.config.spec(kind))
            if tuple(value.shape[1:]) != size:
                message = f"{item.ref.name}: prepared to {_dim(tuple(value.shape[1:]))}"
                findings.append(_finding("size-differs", message, _dim(size), origin))
            values.append(value)
        with model.inference():
            made = model.encoders[kind](tuple(values))
            through = model.connectors[kind](made)
        items = [(size, *run[size]) for size in chosen]
        findings += _compare(kind, items, made, through, model.config)
    return findings, ", ".join(notes) or "no media in these rows"


def columns_on_meta(config: MLLM.Config, sizes: Sizes) -> list[Finding]:
    """The same at any scale, without weights or memory: on the meta device only shapes are computed."""
    findings: list[Finding] = []
    for kind, encoder in config.encoders.items():
        own = sorted((size for k, size in sizes if k == kind), key=lambda size: (_area(size), size))
        chosen = _spread([size for size in own if config.layout(kind, size).count <= LARGEST])
        if not chosen:
            continue
        with torch.device("meta"):
            parts: list[nn.Module] = [
                encoder.build(),
                config.connectors[kind].build(d_in=encoder.dim, d_out=config.llm.dim),
            ]
            blank = tuple(torch.empty(3, *size, dtype=torch.uint8) for size in chosen)
            with torch.no_grad():
                made = parts[0].eval()(blank)
                through = parts[1].eval()(made)
        findings += _compare(kind, [(size, *sizes[kind, size]) for size in chosen], made, through, config)
    return findings


def _compare(
    kind: str, items: list[tuple[tuple[int, ...], Item, Origin]], made: Features, through: Features, config: MLLM.Config
) -> Iterator[Finding]:
    sizes = [size for size, _, _ in items]
    for who, features, layouts in (
        ("the encoder", made, [config.encoders[kind].layout(size) for size in sizes]),
        ("the connector", through, [config.layout(kind, size) for size in sizes]),
    ):
        yield from _stage(who, features, layouts, items)


def _stage(
    who: str, features: Features, layouts: list[Layout], items: list[tuple[tuple[int, ...], Item, Origin]]
) -> Iterator[Finding]:
    counts, wanted = features.counts, [layout.count for layout in layouts]
    if len(counts) != len(wanted):
        message, expected = f"{who} makes features of {len(counts)} media", f"{len(wanted)}, one each"
        yield _finding("feature-count", message, expected, items[0][2])
        return
    differ = False
    for (size, item, origin), count, want in zip(items, counts, wanted, strict=True):
        if count != want:
            differ = True
            message = f"{who} makes {count} features of {item.ref.name} at {_dim(size)}"
            yield _finding("feature-count", message, f"{want}, the places in the text", origin)
    if not differ and len(features.values) != sum(wanted):
        message = f"{who} makes {len(features.values)} features of {len(wanted)} media, and says {sum(counts)}"
        yield _finding("feature-count", message, f"{sum(wanted)}, the places in the text", items[0][2])


def _by_run_size(
    kind: str, found: list[tuple[Item, Origin]], config: MLLM.Config
) -> dict[tuple[int, ...], tuple[Item, Origin]]:
    """Size for the model that runs → the first item of it; a small encoder prepares pictures to another size."""
    spec = config.spec(kind)
    if spec.fixed:
        return {spec.size: found[0]}
    own: dict[tuple[int, ...], tuple[Item, Origin]] = {}
    for item, origin in found:
        own.setdefault(spec.output_size(*image_size(item.ref)), (item, origin))
    return own


def _spread(sizes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    if len(sizes) <= SIZES:
        return sizes
    return [sizes[i * (len(sizes) - 1) // (SIZES - 1)] for i in range(SIZES)]


def _area(size: tuple[int, ...]) -> int:
    return torch.Size(size).numel()


def _dim(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _finding(fault: str, found: str, expected: str, origin: Origin) -> Finding:
    do = "make the config's `layout` and the module count alike"
    return Finding(
        contract="columns", fault=fault, found=found, expected=expected, do=do, file=origin.file, row=origin.row
    )
