"""Low-rank adapters: what they change, what they do not, and peft's files both ways. 9 s, half of it peft's import.

Tolerance: the adapter's two thin products in float32, summed in another order; outputs up to 5. Worst measured: 3.8e-6
(DoRA, merged).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf_config import to_hf
from quintet.components.llms.weights import hf_name, to_hf_state
from quintet.components.lora import (
    Lora,
    LoraLinear,
    apply,
    borrowed,
    disabled,
    has,
    load,
    lora_parameters,
    merge,
    save,
    using,
)
from quintet.components.presets_llm import QWEN2_0_5B
from quintet.components.roles import Context
from quintet.errors import CheckpointError, ConfigError

TOLERANCE = 1e-5
QV = ("q_proj", "v_proj")
KINDS = {
    "lora": Lora(rank=4, alpha=8.0, targets=QV),
    "all linear": Lora(rank=2, alpha=8.0),
    "rslora": Lora(rank=4, alpha=8.0, targets=QV, rslora=True),
    "dora": Lora(rank=4, alpha=8.0, targets=QV, use_dora=True),
}


@pytest.fixture(name="decoder")
def _decoder() -> Decoder:
    return fresh()


def fresh() -> Decoder:
    torch.manual_seed(0)
    decoder = QWEN2_0_5B.tiny().build()
    for p in decoder.parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return decoder


def hidden(decoder: Decoder, *, length: int = 9) -> Tensor:
    tokens = torch.arange(length)[None] * 7
    n = torch.arange(length)[None]
    return decoder(decoder.embed(tokens), Context(enter=0 * n, exit=0 * n + 1, order=n, positions=n))


def stir(module: nn.Module) -> None:
    """An adapter as if trained: B is not zero any more."""
    torch.manual_seed(1)
    for _, p in lora_parameters(module):
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_alone_is_trainable(decoder: Decoder, kind: str) -> None:
    before = hidden(decoder)
    names = apply(decoder, KINDS[kind])
    assert len(names) == (14 if kind == "all linear" else 4)
    torch.testing.assert_close(hidden(decoder), before, atol=TOLERANCE, rtol=0)
    trainable = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in lora_parameters(decoder)}


def test_the_update_is_alpha_over_rank_times_b_a_x_by_hand() -> None:
    """W = 0, A = [[1, 2]], B = [[3], [4]], α / r = 2 / 1: x = (1, 1) → A x = 3 → B · 3 = (9, 12) → · 2 = (18, 24)."""
    layer = nn.Linear(2, 2, bias=False)
    box = nn.Sequential(layer)
    nn.init.zeros_(layer.weight)
    apply(box, Lora(rank=1, alpha=2.0))
    adapted = box[0]
    assert isinstance(adapted, LoraLinear)
    with torch.no_grad():
        adapted.lora_A.copy_(torch.tensor([[1.0, 2.0]]))
        adapted.lora_B.copy_(torch.tensor([[3.0], [4.0]]))
    assert box(torch.ones(1, 2)).tolist() == [[18.0, 24.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_the_same_outputs_and_a_plain_model(decoder: Decoder, kind: str) -> None:
    names = set(decoder.state_dict())
    apply(decoder, KINDS[kind])
    stir(decoder)
    before = hidden(decoder)
    assert (before - hidden(fresh())).abs().max() > 0.1, "the adapter does something"
    merge(decoder)
    torch.testing.assert_close(hidden(decoder), before, atol=TOLERANCE, rtol=0)
    assert set(decoder.state_dict()) == names


@pytest.mark.parametrize("kind", KINDS)
def test_a_disabled_adapter_gives_the_reference_model_exactly(decoder: Decoder, kind: str) -> None:
    reference = hidden(decoder)
    apply(decoder, KINDS[kind])
    stir(decoder)
    adapted = hidden(decoder)
    with disabled(decoder):
        assert torch.equal(hidden(decoder), reference)
    assert torch.equal(hidden(decoder), adapted)


def test_an_adapter_is_enabled_again_after_an_error(decoder: Decoder) -> None:
    apply(decoder, KINDS["lora"])
    with pytest.raises(ZeroDivisionError), disabled(decoder):
        _ = 1 / 0
    assert all(m.active for m in decoder.modules() if isinstance(m, LoraLinear))


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_gets_no_gradient_and_the_adapter_does(decoder: Decoder, kind: str) -> None:
    apply(decoder, KINDS[kind])
    stir(decoder)
    hidden(decoder).sum().backward()
    for name, p in decoder.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_dropout_acts_only_in_training(decoder: Decoder) -> None:
    apply(decoder, Lora(rank=4, dropout=0.5))
    stir(decoder)
    decoder.eval()
    assert torch.equal(hidden(decoder), hidden(decoder))
    decoder.train()
    assert not torch.equal(hidden(decoder), hidden(decoder))


def test_adapters_of_bfloat16_weights_are_float32(decoder: Decoder) -> None:
    decoder.to(torch.bfloat16)
    apply(decoder, KINDS["dora"])
    assert {p.dtype for _, p in lora_parameters(decoder)} == {torch.float32}
    assert hidden(decoder).dtype is torch.bfloat16


def test_weights_do_not_leave_with_an_adapter_that_is_not_merged(decoder: Decoder) -> None:
    apply(decoder, KINDS["lora"])
    with pytest.raises(CheckpointError, match="merge it before saving"):
        to_hf_state(decoder)
    merge(decoder)
    assert len(to_hf_state(decoder)) == len(decoder.state_dict())


def test_unknown_targets_are_named_with_the_nearest(decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match="'q_porj' is no linear layer here; did you mean 'q_proj'"):
        apply(decoder, Lora(targets=("q_porj",)))


def test_a_second_adapter_is_refused(decoder: Decoder) -> None:
    apply(decoder, KINDS["lora"])
    with pytest.raises(ConfigError, match="merge it first"):
        apply(decoder, KINDS["lora"])


@pytest.mark.parametrize(
    ("change", "message"), [({"rank": 0}, "rank is 0"), ({"dropout": 1.0}, "a share"), ({"targets": ()}, "are empty")]
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Lora(**change)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_survives_its_files(decoder: Decoder, tmp_path: Path, kind: str) -> None:
    apply(decoder, KINDS[kind])
    stir(decoder)
    save(decoder, tmp_path, rename=hf_name)
    other = fresh()
    cfg = load(other, tmp_path, rename=hf_name)
    assert (cfg.rank, cfg.scale, cfg.use_dora) == (KINDS[kind].rank, KINDS[kind].scale, KINDS[kind].use_dora)
    assert torch.equal(hidden(other), hidden(decoder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"bias": "all"}, "'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"r": 3}, r"expected \(3, 32\)"),
    ],
)
def test_files_that_mean_something_else_are_refused(
    decoder: Decoder, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    apply(decoder, KINDS["lora"])
    save(decoder, tmp_path, rename=hf_name)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load(fresh(), tmp_path, rename=hf_name)


def test_layers_that_are_not_here_are_named(decoder: Decoder, tmp_path: Path) -> None:
    apply(decoder, KINDS["lora"])
    save(decoder, tmp_path, rename=lambda name: f"elsewhere.{name}")
    with pytest.raises(CheckpointError, match=r"no such layers here: base_model\.model\.elsewhere"):
        load(fresh(), tmp_path, rename=hf_name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 uses it
@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_we_load_each_others_files_with_equal_logits(decoder: Decoder, tmp_path: Path, kind: str) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_hf(decoder.cfg))).eval()
    base.load_state_dict(to_hf_state(decoder), strict=False)
    base.tie_weights()
    tokens = torch.arange(9)[None] * 7
    apply(decoder, KINDS[kind])
    stir(decoder)
    save(decoder, tmp_path / "ours", rename=hf_name)
    loaded = PeftModel.from_pretrained(base, tmp_path / "ours")
    torch.testing.assert_close(decoder.head(hidden(decoder)), loaded(tokens).logits, atol=TOLERANCE, rtol=0)

    settings = {"use_dora": kind == "dora", "use_rslora": kind == "rslora"}
    targets = "all-linear" if kind == "all linear" else list(QV)
    theirs = get_peft_model(loaded.unload(), LoraConfig(r=3, lora_alpha=7, target_modules=targets, **settings))
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    other = fresh()
    load(other, tmp_path / "theirs", rename=hf_name)
    torch.testing.assert_close(other.head(hidden(other)), theirs(tokens).logits, atol=TOLERANCE, rtol=0)


# ---- adapters beside the first ones ------------------------------------------------------------------------------
def grown(decoder: Decoder, seed: int) -> Decoder:
    """Every adapter adds something."""
    torch.manual_seed(seed)
    for name, p in lora_parameters(decoder):
        if name.endswith("lora_B"):
            nn.init.normal_(p, std=0.1)
    return decoder


def test_an_adapter_beside_the_first_computes_and_learns_only_where_it_is_asked_for(decoder: Decoder) -> None:
    before = hidden(decoder)
    apply(decoder, Lora(rank=4, targets=QV, beside=("value",)))
    assert has(decoder, "value")
    assert not has(decoder, "other")
    for name in ("value", "other"):
        with using(decoder, name):
            assert torch.equal(hidden(decoder), before), "it adds nothing yet"
    grown(decoder, 1)
    first = hidden(decoder)
    with using(decoder, "value"):
        second = hidden(decoder)
    assert not torch.allclose(first, second)
    assert torch.equal(hidden(decoder), first)
    with disabled(decoder), using(decoder, "value"):
        assert torch.equal(hidden(decoder), before)
    parameters = dict(lora_parameters(decoder))
    for asked, learns in ((True, ".beside.value."), (False, "")):
        for p in parameters.values():
            p.grad = None
        with using(decoder, "value" if asked else ""):
            hidden(decoder).square().sum().backward()
        got = {name for name, p in parameters.items() if p.grad is not None}
        assert got == {name for name in parameters if (".beside." in name) is bool(learns)}
    merge(decoder)
    assert not list(lora_parameters(decoder))
    torch.testing.assert_close(hidden(decoder), first, atol=TOLERANCE, rtol=0)


def test_adapters_of_another_run_are_lent_and_given_back(decoder: Decoder) -> None:
    """Of another rank and scale, over the same weights: what the other run computes, then again what was."""
    lender, cfg = fresh(), Lora(rank=3, alpha=9.0, targets=QV)
    apply(lender, cfg)
    grown(lender, 2)
    lent = {name: p.detach().clone() for name, p in lora_parameters(lender)}
    apply(decoder, Lora(rank=4, alpha=8.0, targets=QV))
    own = hidden(grown(decoder, 3))
    with borrowed(decoder, lent, cfg):
        torch.testing.assert_close(hidden(decoder), hidden(lender), atol=TOLERANCE, rtol=0)
    assert torch.equal(hidden(decoder), own)
    with pytest.raises(CheckpointError, match="of other layers"), borrowed(decoder, {"x.lora_A": own}, cfg):
        pass


def test_adapters_beside_dora_are_refused() -> None:
    with pytest.raises(ConfigError, match="use_dora=false"):
        Lora(use_dora=True, beside=("value",))
