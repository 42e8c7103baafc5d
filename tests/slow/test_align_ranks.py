"""BLIP-2's first stage on two processes: the pairs of both are compared, and nobody waits for ever. About 40 s."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import picture_rows
from quintet import dist
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.sources import open_source
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.run import Job, train
from quintet.model.mllm import MLLM
from quintet.recipes import blip2
from quintet.recipes._scale import at_scale
from quintet.training.loop import Settings
from quintet.training.objectives.align import align
from quintet.training.optim import set_trainable
from quintet.values import Batch

LOSS = 1e-5
"""Share of the loss; the same sums in another order."""
WITHOUT_ITM = {"itm": 0.0}
"""Its negatives are each process' own, and drawn."""
SETS = tuple(f"stages.{s}.{v}" for s in ("align", "generative") for v in ("packing=false", "micro=1", "batch=3"))


def pieces(rows: Path) -> tuple[MLLM, Any]:
    """A tiny BLIP-2, and what makes a batch of rows of these numbers."""
    torch.manual_seed(0)
    recipe = at_scale(blip2.recipe(), "tiny")
    tokenizer = load_tokenizer(recipe.model)
    model = build_model(recipe.model, vocab=tokenizer.vocab)
    stage = recipe.stages[0]
    set_trainable(model, stage.train)
    source, processor = open_source(rows), Processor(tokenizer, stage.template, recipe.model)

    def batch(numbers: list[int]) -> Batch:
        spelt = [processor.tokens(source.sample(n)) for n in numbers]
        items = [item for tokens in spelt for item in tokens.items]
        media = {n: Loaded(load_image(item.ref, processor.spec(item.kind))) for n, item in enumerate(items)}
        return collate([[tokens] for tokens in spelt], media, pad=tokenizer.pad_id)

    return model, batch


def measured(rows: Path, shares: list[list[int]]) -> dict[str, Any]:
    """Loss and gradients of the pairs that are this process' share, summed over the processes."""
    model, batch = pieces(rows)
    model.run_all_parts = dist.world() > 1
    loss, count, _ = align(model, batch(shares[dist.rank()]), WITHOUT_ITM)
    if loss.requires_grad:
        loss.backward()
    connector: Any = model.connectors["image"]
    watched = (connector.qformer.queries, connector.captions.itc_caption.weight, connector.captions.log_temperature)
    norms = [dist.total(*p.grad.flatten().tolist()) for p in watched]
    whole, counts = dist.total(float(loss.detach()), count)
    return {"loss": whole / counts, "gradients": [float(torch.tensor(n).norm()) / counts for n in norms]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    rows = picture_rows(folder / "rows", 5, text_only=4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    known = {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]), "OMP_NUM_THREADS": "1"}
    known |= {"QUINTET_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [*command, str(rows), str(folder)],
        env=os.environ | known,
        timeout=500,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", ["both", "one has none"])
def test_two_processes_compare_the_pairs_of_both(found: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, by_two = found
    alone = measured(folder / "rows" / "rows.json", [[0, 1, 2, 3]])
    assert by_two[name]["loss"] == pytest.approx(alone["loss"], rel=LOSS)
    # The temperature's is a sum of terms of up to 14 that cancel to 8e-4: rounding alone measured 1e-6.
    assert by_two[name]["gradients"] == pytest.approx(alone["gradients"], rel=1e-3, abs=5e-6)
    apart = [measured(folder / "rows" / "rows.json", [share])["loss"] for share in ([0, 1], [2, 3])]
    assert max(apart) < alone["loss"] - 0.1, "with fewer negatives the task is easier"


def test_notes_are_summed_though_a_process_has_made_none(found: tuple[Path, dict[str, Any]]) -> None:
    assert found[1]["notes"] == {"both": 5.0, "first": 2.0}
    assert dist.summed({"b": 1.0, "a": 2.0}) == {"a": 2.0, "b": 1.0}


def test_a_sharded_run_ends_though_a_process_has_no_pair(found: tuple[Path, dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (found[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["align"] * 3 + ["generative"] * 3
    assert all(line["loss"] > 0 for line in lines)
    assert (found[0] / "run" / "model" / "connectors.image.captions.safetensors").is_file()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with dist.group():
        seen = {"both": measured(rows, [[0, 1], [2, 3]]), "one has none": measured(rows, [[0, 1, 2, 3], [7]])}
        seen["notes"] = dist.summed({"both": 1.0, "first": 2.0} if dist.is_first() else {"both": 4.0})
        if dist.is_first():
            (folder / "found.json").write_text(json.dumps(seen))
        job = Job(recipe="blip2", scale="tiny", out=folder / "run", settings=Settings(features="off"), sets=SETS)
        job = replace(
            job, data={"": rows, "align": rows}, sets=(*SETS, "stages.align.steps=3", "stages.generative.steps=3")
        )
        train(job)
