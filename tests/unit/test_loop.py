"""The loop, step by step: what a loss is divided by, what a step moves, what stops a run. About 8 s."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from conftest import byte_tokenizer, picture_rows
from quintet.components.lora import Lora
from quintet.data.sources import open_source
from quintet.data.template import Frame, Template
from quintet.errors import CheckpointError, DataError, TrainingError
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._scale import at_scale
from quintet.training.folder import Metrics, RunFolder
from quintet.training.loop import Given, Interrupted, Result, Settings, train_stage
from quintet.training.stage import Rate, Stage
from quintet.values import Node, Origin, Sample, Text, Turn

CHAT = Template(name="chat", user=Frame(before="U:"), assistant="A:", end="</s>")
RECIPE = at_scale(load_recipe("llava15")[1], "tiny")
STAGE = replace(
    RECIPE.stages[1],
    template=CHAT,
    batch=4,
    steps=3,
    row=256,
    micro=1000,
    warmup=0.0,
    schedule="constant",
    clip=1e9,
    train={"connectors": Rate(lr=1e-2), "llm": Rate(lr=1e-2)},
)
FP32 = Settings(precision="fp32", features="off")


class Words:
    """Rows without pictures: a question and an answer of a given length."""

    name = "words"

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> Sample:
        answer = "".join(chr(97 + (index * 7 + i) % 26) for i in range(self.lengths[index]))
        turns = (Turn("user", (Text("q"),)), Turn("assistant", (Text(answer),)))
        return Sample(Node(turns), Origin("words.json", index + 1))


def built(seed: int = 0) -> MLLM:
    torch.manual_seed(seed)
    return RECIPE.model.build(vocab=byte_tokenizer().vocab)


def trained(
    folder: Path, source: Any, stage: Stage = STAGE, *, model: MLLM | None = None, settings: Settings = FP32
) -> tuple[MLLM, Result]:
    model = model or built()
    return model, train_stage(model, stage, source, byte_tokenizer(), run=RunFolder(folder), settings=settings)


def lines(folder: Path) -> list[dict[str, Any]]:
    return Metrics.read(folder / "metrics.jsonl")


@pytest.fixture
def pictures(tmp_path: Path) -> Any:
    return open_source(picture_rows(tmp_path / "data", 6, text_only=2))


def test_a_steps_loss_is_its_sum_over_all_targets_by_its_count(tmp_path: Path) -> None:
    """Answers of 1 and 30 letters: 3 and 32 targets with space and end marker. A mean of two means would weigh the
    short answer ten times as much; here the step's loss is (sum₁ + sum₂) / 35.
    """
    source, model = Words(1, 30), built()
    stage = replace(STAGE, batch=2, steps=1, micro=1, packing=False)
    sums, counts = [], []
    for index in range(2):
        tokens = CHAT.tokens(source.sample(index), byte_tokenizer(), lambda m: ((1, 1), 1))
        with model.inference():
            logits = model.logits(model.llm(model.llm.embed(tokens.ids[None]), context(tokens)))[0]
        nll = -logits.log_softmax(-1)[tokens.parent[1:], tokens.ids[1:]]
        sums.append(float((nll * tokens.weight[1:]).sum()))
        counts.append(tokens.count)
    _, result = trained(tmp_path, source, stage, model=model)
    assert counts == [3, 32]
    # float32 sums in another order; measured 2e-7.
    assert result.first_loss == pytest.approx(sum(sums) / 35, abs=1e-5)
    assert abs(sums[0] / 3 + sums[1] / 32 - 2 * sum(sums) / 35) > 1e-3, "the means must differ for this to tell"


def context(tokens: Any) -> Any:
    from quintet.components.roles import Context

    one = [v[None] for v in (tokens.enter, tokens.exit, tokens.order, tokens.position)]
    return Context(enter=one[0], exit=one[1], order=one[2], positions=one[3])


def test_micro_batches_packing_and_workers_do_not_change_what_is_learnt(tmp_path: Path, pictures: Any) -> None:
    """Weights after three steps of Adam. Its first steps turn rounding of tiny gradients into steps of the rate's size,
    so losses are compared: worst measured 3e-6.
    """
    ways = {
        "whole": (STAGE, FP32),
        "one by one": (replace(STAGE, micro=1), FP32),
        "unpacked": (replace(STAGE, packing=False), FP32),
        "workers": (STAGE, replace(FP32, workers=2)),
    }
    losses = {}
    for name, (stage, settings) in ways.items():
        trained(tmp_path / name, pictures, stage, settings=settings)
        losses[name] = [row["loss"] for row in lines(tmp_path / name)]
        assert losses[name] == pytest.approx(losses["whole"], abs=2e-5), name
    assert losses["workers"] == losses["whole"]


def test_kept_features_change_nothing(tmp_path: Path, pictures: Any) -> None:
    from quintet.lab.features import keep_features

    trained(tmp_path / "plain", pictures)
    model = built()
    settings = replace(FP32, features="on")
    cache = keep_features(
        model, STAGE, [STAGE], pictures, settings=settings, folder=tmp_path / "cache", note=lambda text: None
    )
    assert cache is not None
    train_stage(
        model,
        STAGE,
        pictures,
        byte_tokenizer(),
        run=RunFolder(tmp_path / "kept"),
        settings=settings,
        given=Given(cache),
    )
    plain, kept = ([row["loss"] for row in lines(tmp_path / name)] for name in ("plain", "kept"))
    assert kept == pytest.approx(plain, abs=2e-5)


def test_only_the_declared_parts_move(tmp_path: Path, pictures: Any) -> None:
    before = {name: value.clone() for name, value in built().state_dict().items()}
    model, _ = trained(tmp_path, pictures, replace(STAGE, train={"connectors": Rate(lr=1e-2)}))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("connectors"), name
    written = load_file(tmp_path / "stages" / STAGE.name / "trained.safetensors")
    assert {name.split(".")[0] for name in written} == {"connectors"}


def test_a_first_step_of_adam_by_hand(tmp_path: Path) -> None:
    """Every weight with a gradient moves by the rate, whatever the gradient's size: m̂ / √v̂ = ±1 (ε aside)."""
    model = built()
    before = model.llm.norm.weight.detach().clone()
    trained(tmp_path, Words(9, 8, 7, 6), replace(STAGE, steps=1, train={"llm": Rate(lr=1e-3)}), model=model)
    moved = (model.llm.norm.weight.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), atol=2e-5, rtol=0)


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    """Adam does not see the scale of a first gradient, so the norm before clipping is what is logged; 0 clips all."""
    model = built()
    before = model.llm.norm.weight.detach().clone()
    trained(tmp_path, Words(9, 8, 7, 6), replace(STAGE, steps=1, clip=1e-12), model=model)
    assert lines(tmp_path)[0]["grad_norm"] > 0.1
    assert (model.llm.norm.weight.detach() - before).abs().max() < 1e-3, "clipped to 1e-12, under Adam's ε of 1e-8"


def test_a_part_that_a_step_does_not_use_goes_on_by_its_momentum_as_it_does_when_sharded(tmp_path: Path) -> None:
    """A step with pictures, then one without: the connector's gradient is zero there, and not missing."""
    data = open_source(picture_rows(tmp_path / "data", 1, text_only=1))
    stage = replace(STAGE, batch=1, steps=2)
    model = built()
    start = {n: p.detach().clone() for n, p in model.connectors.named_parameters()}
    seed = next(s for s in range(20) if picture_first(data, s))
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", data, stage, model=model, settings=replace(FP32, seed=seed, stop_after=1))
    after_one = {n: p.detach().clone() for n, p in model.connectors.named_parameters()}
    trained(tmp_path / "run", data, stage, model=model, settings=replace(FP32, seed=seed))
    for name, parameter in model.connectors.named_parameters():
        first, second = after_one[name] - start[name], parameter.detach() - after_one[name]
        assert float(first.abs().max()) > 0
        # Step 2 with zero gradient: m̂ = β₁(1−β₁)g / (1−β₁²), v̂ = β₂(1−β₂)g² / (1−β₂²); the step is
        # 0.9/1.9 / √(0.999/1.999) = 0.670 of the first, where the gradient is a thousand times Adam's ε or more.
        big = first.abs() > 0.999e-2
        assert float(big.float().mean()) > 0.5
        torch.testing.assert_close(second[big] / first[big], torch.full_like(first[big], 0.6701), atol=2e-3, rtol=0)


def picture_first(source: Any, seed: int) -> bool:
    """Whether the run's first sample has the picture."""
    import numpy as np

    return bool(source.sample(int(np.random.default_rng((seed, 0)).permutation(len(source))[0])).media())


def test_text_alone_is_borne_where_only_a_connector_trains(tmp_path: Path) -> None:
    """Nothing to go back through: the loss is there, the gradient is zero, the run goes on."""
    trained(tmp_path, Words(5, 6, 7, 8), replace(STAGE, train={"connectors": Rate(lr=1e-2)}))
    assert [row["grad_norm"] for row in lines(tmp_path)] == [0, 0, 0]


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(tmp_path: Path) -> None:
    model = built()
    with torch.no_grad():
        model.llm.norm.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"step 0 of stage 'instruct': loss nan.*lower the learning rate"):
        trained(tmp_path, Words(5, 6, 7, 8), model=model)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_stops_with_a_checkpoint_and_goes_on_to_the_bit(
    tmp_path: Path, pictures: Any, optimizer: Literal["adamw", "muon"]
) -> None:
    stage = replace(STAGE, optimizer=optimizer)
    whole, at_once = trained(tmp_path / "whole", pictures, stage)
    for n in (1, 2):
        with pytest.raises(Interrupted, match=f"stopped after step {n}"):
            trained(tmp_path / "parts", pictures, stage, settings=replace(FP32, stop_after=1))
    parts, result = trained(tmp_path / "parts", pictures, stage)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert [row["loss"] for row in lines(tmp_path / "parts")] == [row["loss"] for row in lines(tmp_path / "whole")]
    assert replace(result, seconds=0.0) == replace(at_once, seconds=0.0)
    assert not list((tmp_path / "parts" / "checkpoints").iterdir())


def test_a_checkpoint_of_other_rows_or_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, Words(5, 6, 7, 8), settings=replace(FP32, stop_after=1))
    with pytest.raises(CheckpointError, match="of 3 steps over 4 rows, this one has 3 over 5"):
        trained(tmp_path, Words(5, 6, 7, 8, 9))
    with pytest.raises(CheckpointError, match="of 3 steps over 4 rows, this one has 4 over 4"):
        trained(tmp_path, Words(5, 6, 7, 8), replace(STAGE, steps=4))


def test_a_checkpoint_of_other_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(
            tmp_path,
            Words(5, 6, 7, 8),
            replace(STAGE, train={"connectors": Rate(lr=1.0)}),
            settings=replace(FP32, stop_after=1),
        )
    with pytest.raises(CheckpointError, match="does not fit this stage"):
        trained(tmp_path, Words(5, 6, 7, 8))


def test_adapters_begin_alike_whatever_ran_before_them(tmp_path: Path) -> None:
    """A run that resumes before a stage's first checkpoint has drawn other random numbers by then."""
    stage = replace(STAGE, train={"llm": Rate(lr=1e-3, lora=Lora(rank=2, dropout=0.5))})
    results = []
    for name, drawn in (("a", 0), ("b", 5)):
        model = built()
        torch.rand(drawn)
        results.append(dict(trained(tmp_path / name, Words(5, 6, 7, 8), stage, model=model)[0].named_parameters()))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_what_is_dropped_is_counted_in_the_metrics_and_the_result(tmp_path: Path) -> None:
    """One of five is too long; over three steps of 4 it is met two or three times."""
    _, result = trained(tmp_path, Words(5, 6, 7, 8, 400), replace(STAGE, drop_limit=1.0))
    assert result.dropped == {"too-long": lines(tmp_path)[-1]["dropped"]}
    assert result.dropped["too-long"] in (2, 3)


def test_drops_are_counted_alike_with_workers_who_plan_ahead(tmp_path: Path, pictures: Any) -> None:
    stage = replace(STAGE, row=75, drop_limit=1.0)
    for name, workers in (("none", 0), ("two", 2)):
        trained(tmp_path / name, pictures, stage, settings=replace(FP32, workers=workers))
    counted = [[row["dropped"] for row in lines(tmp_path / name)] for name in ("none", "two")]
    assert counted[0] == counted[1]
    assert counted[0][0] < counted[0][-1], "drops must lie in later steps for this to tell"


def test_a_sample_that_is_too_long_stops_the_run_if_the_stage_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a row holds 256"):
        trained(tmp_path, Words(400, 400), replace(STAGE, too_long="error"))


def test_a_line_of_metrics_says_what_a_step_did(tmp_path: Path) -> None:
    """Four answers of 6 letters: 4 × 8 targets, 4 × 14 tokens in a row of 56 columns."""
    trained(tmp_path, Words(6, 6, 6, 6), replace(STAGE, steps=2, schedule="linear"))
    first, second = lines(tmp_path)
    assert (first["stage"], first["step"], first["steps"]) == ("instruct", 1, 2)
    assert (first["targets"], first["tokens"], first["fill"]) == (32, 56, 1.0)
    assert (first["lr"], second["lr"]) == (1.0, 0.5)
    assert second["seconds"] >= first["seconds"] >= first["step_seconds"] > 0


def test_progress_is_told_of_every_step(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    train_stage(
        built(), STAGE, Words(5, 6), byte_tokenizer(), run=RunFolder(tmp_path), settings=FP32, progress=told.append
    )
    assert told == lines(tmp_path)
