"""The contract of every stage: exactly the declared parts learn, also in bfloat16, and prompts begin what is learnt."""

import copy
import re
from dataclasses import replace

import subjects
import torch
from subjects import (
    Subject,
    conversations,
)
from torch import nn

from quintet.components import lora
from quintet.model.mllm import MLLM
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import set_trainable
from quintet.training.stage import Rate
from quintet.values import Node

plain = subjects.plain


def test_exactly_the_declared_parts_get_gradients_in_every_stage(plain: Subject) -> None:
    processor = plain.processor
    for stage in plain.recipe.stages:
        spelt = replace(processor, template=stage.template)
        model = copy.deepcopy(plain.model)
        model.fused = stage.fused
        declared = set_trainable(model, stage.train)
        wake(model)
        batch = plain.batch([[spelt.tokens(s)] for s in conversations(plain.kinds)])
        OBJECTIVES[stage.objective](model, batch, stage.extra)[0].backward()
        for part, module in model.parts().items():
            for name, parameter in module.named_parameters():
                has = parameter.grad is not None and bool((parameter.grad != 0).any())
                assert has == learns(module, name, declared.get(part)), f"stage {stage.name}: {part}.{name}"


def test_every_stage_takes_a_step_in_bfloat16(plain: Subject) -> None:
    """Where some products are rounded and some are not, types meet that a run in float32 never sees."""
    for stage in plain.recipe.stages:
        model = copy.deepcopy(plain.model)
        model.fused = stage.fused
        set_trainable(model, stage.train)
        spelt = replace(plain.processor, template=stage.template)
        batch = plain.batch([[spelt.tokens(s)] for s in conversations(plain.kinds)])
        with torch.autocast("cpu", torch.bfloat16):
            loss = OBJECTIVES[stage.objective](model, batch, stage.extra)[0]
        loss.backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert found, f"stage {stage.name} learns nothing"
        assert all(bool(torch.isfinite(x).all()) for x in (loss, *found)), stage.name


def wake(model: MLLM) -> None:
    """Adapters begin as zero, and then half of their weights get no gradient: they are drawn as after some steps."""
    for name, parameter in lora.lora_parameters(model):
        if name.endswith("lora_B"):
            with torch.no_grad():
                parameter.normal_(std=0.1)


def learns(part: nn.Module, name: str, rate: Rate | None) -> bool:
    """Whether a parameter of a part learns at this rate: all do, or the adapters, or those of the upper layers."""
    if rate is None:
        return False
    if rate.lora is not None:
        return ".lora_" in name
    if rate.upper == 1:
        return True
    layer = re.compile(r"layers\.(\d+)\.")
    numbers = {int(found[1]) for n, _ in part.named_parameters() if (found := layer.match(n))}
    found = layer.match(name)
    first = min(len(numbers) * (1 - rate.upper), len(numbers) - 1)
    return name.startswith("norm.") or (found is not None and int(found[1]) >= first)


def test_the_open_prompt_is_a_prefix_of_the_training_tokens(plain: Subject) -> None:
    """At every answer, in every stage's template; what is learnt of that turn is exactly what follows the prompt."""
    for stage in plain.recipe.stages:
        spelt = replace(plain.processor, template=stage.template)
        for whole in conversations(plain.kinds):
            turns = whole.root.turns
            for n, turn in enumerate(turns):
                if turn.role != "assistant":
                    continue
                prompt = spelt.tokens(replace(whole, root=Node(turns[:n])), open=True)
                taught = spelt.tokens(replace(whole, root=Node(turns[: n + 1])))
                assert torch.equal(taught.ids[: len(prompt)], prompt.ids)
                assert torch.equal(taught.position[: len(prompt)], prompt.position)
                assert [i.start for i in prompt.items] == [i.start for i in taught.items]
                assert bool((taught.weight[len(prompt) :] == turn.weight).all())
                answer = plain.processor.tokenizer.decode(taught.ids[len(prompt) :].tolist(), keep_special=True)
                assert answer == stage.template.answer + turn.parts[0].text + stage.template.end  # type: ignore[union-attr]
