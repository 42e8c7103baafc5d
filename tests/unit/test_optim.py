"""What trains, how fast, and when: by hand. About 2 s."""

from dataclasses import replace

import pytest
import torch

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.llms.decoder import Decoder
from quintet.components.lora import Lora
from quintet.errors import ConfigError
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.training.optim import make_optimizer, rate_of, schedule, set_trainable, trainable
from quintet.training.stage import Rate, Stage

CONFIG = MLLM.Config(
    encoders={"image": CLIP_L_336.tiny()},
    connectors={"image": Mlp.Config()},
    llm=Decoder.Config(vocab=30, dim=16, depth=1, heads=2, kv_heads=1, ffn=16),
)


@pytest.fixture
def model() -> MLLM:
    torch.manual_seed(0)
    return CONFIG.build()


@pytest.fixture(scope="module")
def stage() -> Stage:
    return load_recipe("llava15")[1].stages[1]


def test_the_longest_name_decides_a_parts_rate() -> None:
    rates = {"encoders": Rate(lr=1.0), "encoders.image": Rate(lr=2.0), "llm": Rate(lr=3.0)}
    assert [rate_of(p, rates) for p in ("encoders.audio", "encoders.image", "llm", "fusion", "llmx")] == [
        Rate(lr=1.0),
        Rate(lr=2.0),
        Rate(lr=3.0),
        None,
        None,
    ]


def test_only_parts_with_a_rate_learn(model: MLLM) -> None:
    found = set_trainable(model, {"connectors": Rate(lr=1.0), "llm": Rate(lr=2.0)})
    assert found == {"connectors.image": Rate(lr=1.0), "llm": Rate(lr=2.0)}
    assert {name.split(".")[0] for name, _ in trainable(model)} == {"connectors", "llm"}
    assert model.frozen_encoders == {"image"}


def test_a_later_stage_freezes_what_an_earlier_one_trained(model: MLLM) -> None:
    set_trainable(model, {"encoders": Rate(lr=1.0)})
    assert model.frozen_encoders == frozenset()
    set_trainable(model, {"connectors": Rate(lr=1.0)})
    assert {name.split(".")[0] for name, _ in trainable(model)} == {"connectors"}


def test_adapters_learn_and_the_weights_under_them_do_not(model: MLLM) -> None:
    set_trainable(model, {"llm": Rate(lr=1.0, lora=Lora(rank=2))})
    names = [name for name, _ in trainable(model)]
    assert names
    assert all(".lora_" in name for name in names)


def test_a_part_that_is_not_there_is_refused_with_the_nearest(model: MLLM) -> None:
    with pytest.raises(ConfigError, match="no part 'conectors' to train; did you mean 'connectors'"):
        set_trainable(model, {"conectors": Rate(lr=1.0)})


def test_every_parameter_has_its_parts_rate_and_only_matrices_decay(model: MLLM, stage: Stage) -> None:
    rates = {"connectors": Rate(lr=1.0), "llm": Rate(lr=2.0)}
    optimizer = make_optimizer(model, set_trainable(model, rates), replace(stage, weight_decay=0.1))
    found = {p: (g["peak"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in trainable(model):
        wanted = (1.0 if name.startswith("connectors") else 2.0, 0.1 if parameter.ndim > 1 else 0.0)
        assert found[parameter] == wanted
    assert len(found) == len(trainable(model))


def test_muon_trains_the_hidden_matrices_of_the_llm_and_adamw_the_rest(model: MLLM, stage: Stage) -> None:
    rates = {"connectors": Rate(lr=1.0), "llm": Rate(lr=2.0)}
    asked = replace(stage, optimizer="muon", muon_lr=0.5)
    optimizer = make_optimizer(model, set_trainable(model, rates), asked)
    found = {p: g["peak"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in trainable(model):
        hidden = name.startswith("llm.blocks.") and parameter.ndim == 2
        assert found[parameter] == (0.5 if hidden else 1.0 if name.startswith("connectors") else 2.0)
        assert set(optimizer.moments(parameter)) == (
            {"momentum_buffer"} if hidden else {"step", "exp_avg", "exp_avg_sq"}
        )
    assert len(found) == len(trainable(model))


@pytest.mark.parametrize(
    ("kind", "final", "wanted"),
    [
        # 10 steps, of which ceil(0.15 × 10) = 2 warm up: 1/2, 1. Then 8 steps fall from 1 at step 2.
        ("constant", 0.0, [0.5, 1, 1, 1, 1]),
        ("linear", 0.0, [0.5, 1, 1, 0.5, 0.125]),
        ("cosine", 0.0, [0.5, 1, 1, 0.5, 0.0380602]),  # step 9: (1 + cos(7/8 π)) / 2
        ("linear", 0.2, [0.5, 1, 1, 0.6, 0.3]),
    ],
)
def test_the_rate_rises_and_falls(stage: Stage, kind: str, final: float, wanted: list[float]) -> None:
    shaped = replace(stage, schedule=kind, warmup=0.15, final=final)  # type: ignore[arg-type]
    found = [schedule(step, steps=10, stage=shaped) for step in (0, 1, 2, 6, 9)]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_without_warm_up_the_first_step_has_the_whole_rate(stage: Stage) -> None:
    assert schedule(0, steps=3, stage=replace(stage, warmup=0.0)) == 1.0


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "steps"), [(10, 1.0, 4, 3), (8, 1.0, 4, 2), (3, 0.5, 4, 1), (8, 2.5, 4, 5)]
)
def test_steps_of_a_stage_by_hand(stage: Stage, rows: int, epochs: float, batch: int, steps: int) -> None:
    """Rows × epochs / batch, rounded up, at least one."""
    assert replace(stage, epochs=epochs, batch=batch).num_steps(rows) == steps
    assert replace(stage, steps=7).num_steps(rows) == 7


@pytest.mark.parametrize(("fields", "message"), [({"train": {}}, "trains no part"), ({"batch": 0}, "batch is 0")])
def test_a_stage_checks_itself(stage: Stage, fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(stage, **fields)
