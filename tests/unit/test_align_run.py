"""BLIP-2's first stage in a run: resumed, asked, and what its heads find. About 10 s."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quintet.data.scenes import World, make_scenes
from quintet.errors import CheckpointError, ConfigError, DataError
from quintet.evaluation.metrics.recall import DIRECTIONS
from quintet.evaluation.run import evaluate
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare.runs import Asked
from quintet.lab.run import Job, train
from quintet.model.checkpoint import CAPTIONS
from quintet.recipes import blip2, llava
from quintet.recipes._scale import at_scale
from quintet.serving.engine import Engine
from quintet.serving.retrieval import Retriever
from quintet.training.loop import Interrupted, Settings
from quintet.values import Node, Sample, Text, Turn
from systems import Small, asked, shown


@pytest.fixture(scope="module")
def small() -> Small:
    return Small("blip2", stage=0)


# ---- a run -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("align") / "scenes"
    make_scenes(out, 24, 0, World())
    return out


@pytest.fixture(scope="module")
def run(scenes: Path) -> Path:
    out = scenes.parent / "run"
    train(Job(recipe="blip2", scale="tiny", out=out, scenes=scenes))
    return out


def test_the_first_stage_resumes_to_the_bit(scenes: Path, run: Path, tmp_path: Path) -> None:
    """Its negatives are drawn by the step's own random numbers."""
    job = Job(recipe="blip2", scale="tiny", out=tmp_path / "run", scenes=scenes)
    with pytest.raises(Interrupted):
        train(replace(job, settings=Settings(stop_after=1)))
    train(replace(job, resume=True))
    for name in ("connectors.image.qformer", "connectors.image.captions"):
        there, here = (folder / "model" / f"{name}.safetensors" for folder in (run, tmp_path / "run"))
        assert here.read_bytes() == there.read_bytes()


def test_a_run_finds_captions_and_pictures(scenes: Path, run: Path) -> None:
    engine = Engine.open(run)
    task = scenes_task("scenes.retrieval", scenes, split="train")
    result = evaluate(engine.answers(task), task, limit=16, out=run)
    assert set(result.kinds) == set(DIRECTIONS)
    assert result.controls["shuffled"] is not None
    assert {f"{d} R@{k}" for d in DIRECTIONS for k in (1, 5, 10)} == set(result.measures)
    assert result.n == 16
    assert (run / "eval" / "scenes.retrieval.json").is_file()
    assert (run / "model" / CAPTIONS / "processor.json").is_file()


def test_a_model_without_such_heads_is_not_asked(scenes: Path, run: Path) -> None:
    task = scenes_task("scenes.retrieval", scenes, split="train")
    asked = Asked(task, {item.id: item for item in task.items()}, 4)
    assert asked.fits(at_scale(blip2.recipe(), "tiny"))
    assert not asked.fits(at_scale(llava.recipe(), "tiny"))
    engine = Engine.open(run)
    engine.captions = None
    assert not engine.fits(task)
    with pytest.raises(ConfigError, match=r"scenes\.retrieval asks which caption fits a picture"):
        engine.answers(task)
    assert engine.fits(scenes_task("scenes.vqa", scenes))


# ---- finding -----------------------------------------------------------------------------------------------------
def test_a_retriever_ranks_by_both_heads(small: Small) -> None:
    """ITM orders what ITC finds near: with its yes turned round the order turns round too."""
    made: Any = small.model.connectors["image"]
    samples = [Sample(Node((Turn("user", (shown(n), Text(f"Number {n}."))),))) for n in range(5)]
    samples += [Sample(Node((Turn("user", (Text(f"Number {n}."), shown(n))),))) for n in range(5)]
    samples = [replace(s, origin=replace(s.origin, id=f"place-{i % 5}")) for i, s in enumerate(samples)]
    found = Retriever(small.model, small.processor).rank(samples)
    assert all(sorted(ranked.split("\n")) == [f"Number {n}." for n in range(5)] for ranked in found[:5])
    assert all(sorted(ranked.split("\n")) == [f"place-{n}" for n in range(5)] for ranked in found[5:])
    by_itc = Retriever(small.model, small.processor, judged=0).rank(samples)
    with torch.no_grad():
        made.captions.itm.weight.mul_(100.0)
        one = Retriever(small.model, small.processor).rank(samples)
        made.captions.itm.weight.mul_(-1.0)
        other = Retriever(small.model, small.processor).rank(samples)
        made.captions.itm.weight.mul_(-0.01)
    assert one != by_itc
    assert [ranked.split("\n") for ranked in other] == [ranked.split("\n")[::-1] for ranked in one]
    assert Retriever(small.model, small.processor, judged=0).rank(samples[::-1])[::-1] == by_itc


def test_a_sample_that_is_no_pair_is_refused(small: Small) -> None:
    with pytest.raises(DataError, match="an image and a caption, the query first"):
        Retriever(small.model, small.processor).rank([asked()])


def test_pictures_are_found_by_the_weights_of_the_stage_that_matched(scenes: Path, run: Path, tmp_path: Path) -> None:
    """The second stage writes with the same Q-Former and leaves ITC and ITM behind."""
    engine = Engine.open(run)
    assert engine.captions is not None
    assert engine.matched is not None
    assert engine.matched.read_bytes() == (run / "stages" / "align" / "trained.safetensors").read_bytes()
    weights, task = load_file(engine.matched), scenes_task("scenes.retrieval", scenes, split="train")
    samples = [item.sample() for item in task.items()]
    after = Retriever(engine.model, engine.captions)._sentences(["a red circle"])
    retriever = Retriever(engine.model, engine.captions, weights=weights)
    found, asked_as_task = retriever.rank(samples), engine.answers(task)(samples)
    assert found == asked_as_task
    assert not torch.equal(retriever._sentences(["a red circle"]), after), "the second stage changed the Q-Former"
    engine.model.load_state_dict(weights, strict=False)
    assert Retriever(engine.model, engine.captions).rank(samples) == found
    with pytest.raises(CheckpointError, match=r"has no qformer\.dax"):
        Retriever(engine.model, engine.captions, weights={"connectors.image.qformer.dax": torch.zeros(1)})
    # Where no later stage has run, the model's own weights are the ones.
    train(Job(recipe="blip2", scale="tiny", out=tmp_path / "run", scenes=scenes, stages=["align"]))
    assert Engine.open(tmp_path / "run").matched is None
