"""The composition: one forward, parts by name, and what sharded training needs of it. About 3 s."""

from dataclasses import replace

import pytest
import torch

from conftest import byte_tokenizer, picture
from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.llms.decoder import Decoder
from quintet.data.collate import Loaded, collate
from quintet.errors import ConfigError
from quintet.model import mllm
from quintet.model.mllm import MLLM
from quintet.values import Batch, Features, Item, Layout, MediaBatch, Ref, Targets, Tokens

LLM = Decoder.Config(vocab=300, dim=16, depth=1, heads=2, kv_heads=1, ffn=16)
CONFIG = MLLM.Config(encoders={"image": CLIP_L_336.tiny()}, connectors={"image": Mlp.Config(depth=2)}, llm=LLM)
COLUMNS = 16


@pytest.fixture
def model() -> MLLM:
    torch.manual_seed(0)
    return CONFIG.build()


def pixels(number: int) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture(number, height=32, width=32))).permute(2, 0, 1).contiguous()


def batch(*, image: bool = True, loaded: Loaded | None = None) -> Batch:
    ids = byte_tokenizer().encode("x" * (COLUMNS if image else 0) + "abc")[0]
    n = len(ids)
    zero = torch.zeros(n, dtype=torch.long)
    weight = torch.zeros(n)
    weight[-3:] = 1
    items = (Item("image", Ref("p"), (32, 32), 0, COLUMNS),) if image else ()
    tokens = Tokens(
        torch.tensor(ids), weight, zero, zero + 1, torch.arange(n), torch.arange(n), torch.arange(n) - 1, items
    )
    return collate([[tokens]], {0: loaded or Loaded(pixels(1))} if image else {}, pad=0)


def test_parts_are_named_as_stages_name_them(model: MLLM) -> None:
    assert list(model.parts()) == ["encoders.image", "connectors.image", "llm"]
    named = sum(p.numel() for part in model.parts().values() for p in part.parameters())
    assert named == sum(p.numel() for p in model.parameters())


def test_columns_are_arithmetic_on_configs() -> None:
    """32 pixels in patches of 8: 16."""
    assert CONFIG.columns("image", (32, 32)) == 16
    with pytest.raises(ConfigError, match="this model takes no audio"):
        CONFIG.columns("audio", (32,))


def test_an_encoder_without_a_connector_is_refused() -> None:
    with pytest.raises(ConfigError, match="each modality needs both"):
        replace(CONFIG, connectors={})


def test_on_the_meta_device_a_model_takes_no_memory() -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in CONFIG.build().parameters())


def test_a_vocabulary_can_be_widened() -> None:
    assert CONFIG.build(vocab=310).llm.vocab == 310


def test_kept_features_give_what_the_encoder_gives(model: MLLM) -> None:
    with model.inference():
        features = model.encoders["image"]((pixels(1),))
        direct = model(batch()).hidden
        kept = model(batch(loaded=Loaded(features.values, features.layouts[0]))).hidden
    assert torch.equal(direct, kept)


def test_frozen_encoders_run_without_a_graph(model: MLLM) -> None:
    model.frozen_encoders = frozenset({"image"})
    assert not model.encode("image", batch()).values.requires_grad
    model.frozen_encoders = frozenset()
    assert model.encode("image", batch()).values.requires_grad


def test_a_batch_without_pictures_runs_every_part_when_training_is_sharded_and_adds_nothing(model: MLLM) -> None:
    """Then all parameters have a gradient, zero where the batch did not use them; the output is the same to the bit."""
    text = batch(image=False)
    plain = model(text).hidden
    model.run_all_parts = True
    output = model(text)
    assert torch.equal(output.hidden, plain)
    model.target_logps(output, text.targets).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None for g in gradients.values())
    for name, gradient in gradients.items():
        assert gradient is not None
        if name.startswith(("encoders", "connectors")):
            assert not gradient.any()


def test_where_features_are_kept_the_encoder_runs_on_no_rank(model: MLLM) -> None:
    """Ranks with pictures have them from the cache; one without must not wait in the encoder for the others."""
    model.run_all_parts = True
    model.kept_encoders = frozenset({"image"})
    model.encoders["image"].register_forward_pre_hook(lambda module, args: pytest.fail("the encoder ran"))
    text = batch(image=False)
    model.target_logps(model(text), text.targets).sum().backward()
    assert all(p.grad is not None for p in model.connectors.parameters())


def test_log_probabilities_by_hand(model: MLLM) -> None:
    """At a target's slot: log softmax of the head, at its id."""
    made = batch()
    output = model(made)
    logps = model.target_logps(output, made.targets)
    logits = model.llm.head(output.hidden.flatten(0, 1)[made.targets.slots])
    by_hand = torch.stack([row.softmax(-1)[i].log() for row, i in zip(logits, made.targets.ids, strict=True)])
    torch.testing.assert_close(logps, by_hand, atol=1e-6, rtol=0)


def test_logits_in_chunks_are_the_same_with_the_same_gradients(model: MLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three targets, two at once: 2 × 4 bytes × 300."""
    made = batch()

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logps = model.target_logps(model(made), made.targets)
        logps.sum().backward()
        return logps.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, gradients = run()
    monkeypatch.setattr(mllm, "LOGIT_BYTES", 2400)
    pieces, again = run()
    assert len(whole) == 3
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)
    for a, b in zip(again, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_nothing_to_learn_gives_an_empty_sum_that_has_a_gradient(model: MLLM) -> None:
    made = batch(image=False)
    none = torch.zeros(0, dtype=torch.long)
    logps = model.target_logps(model(made), Targets(none, none, none.float(), none))
    assert logps.shape == (0,)
    logps.sum().backward()


def test_inference_leaves_the_mode_as_it_was(model: MLLM) -> None:
    model.train()
    with model.inference():
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training


def test_features_of_several_items_go_to_their_own_columns(model: MLLM) -> None:
    """Two items of 1 and 2 features over slots 2 | 0 1: written where the text says, not in the order of slots."""
    values = torch.arange(3.0)[:, None].expand(3, 16)
    where = torch.tensor([2, 0, 1])
    row = torch.zeros(2, dtype=torch.long)
    media = MediaBatch((torch.zeros(1),) * 2, where, (1, 2), row, row, row, row)
    features = Features(values, (Layout((1,)), Layout((2,))))
    text = batch(image=False)
    out = model.fusion.inputs(torch.full((1, 4, 16), -1.0), {"image": features}, replace(text, media={"image": media}))
    assert out[0, :, 0].tolist() == [1, 2, 0, -1]
