"""Feature-level fusion: who looks at which picture, what begins as nothing, and what is kept for an answer. About 5 s.

Contract tests hold the recipes to packing, trees, padding and caching; here is what they cannot see.
"""

from dataclasses import replace

import pytest
import torch
from gated_fixtures import CONFIG, FUSION, batch, built, drawn, features, looked, opened
from torch import Tensor, nn

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.llms.hf import HFCausal
from quintet.errors import ConfigError
from quintet.model.generate import Sampling, generate
from quintet.values import Features, Layout


# ---- who looks at what -------------------------------------------------------------------------------------------
def test_a_column_looks_at_the_last_picture_before_it_and_at_no_other() -> None:
    """Columns: a word before any picture, a marker, words, two markers, a word; a second row with a picture of its own.

    Pictures are of 1, 2, 3 and 4 features, so nothing lines up by chance. Padding sees nothing.
    """
    seen = looked(FUSION, batch("a*bc**d", "e*f"))
    assert drawn(seen[0]) == ["", "0", "0", "0", "1", "2", "2"]
    assert drawn(seen[1]) == ["", "3", "3", "", "", "", ""]


def test_all_pictures_before_a_column_are_looked_at_if_so_set() -> None:
    seen = looked(replace(FUSION, look="all"), batch("a*bc**d", "e*f"))
    assert drawn(seen[0]) == ["", "0", "0", "0", "01", "012", "012"]
    assert drawn(seen[1]) == ["", "3", "3", "", "", "", ""]


@pytest.mark.parametrize(("look", "last"), [("last", "1"), ("all", "01")])
def test_in_a_tree_a_branch_sees_the_pictures_of_its_path_alone(look: str, last: str) -> None:
    """Root `*a`, then branches `b`, `*c` and `d`: the second has a picture that its siblings do not see."""
    made = batch("*ab*cd")
    enter, end = torch.tensor([[0, 0, 1, 2, 2, 3]]), torch.tensor([[4, 4, 2, 3, 3, 4]])
    media = replace(made.media["image"], enter=torch.tensor([0, 2]), exit=torch.tensor([4, 3]))
    made = replace(made, enter=enter, exit=end, media={"image": media})
    config = replace(FUSION, look=look)  # type: ignore[arg-type]
    assert drawn(looked(config, made)[0]) == ["0", "0", "0", last, last, "0"]


def test_packed_items_with_different_numbers_of_features_give_what_each_gives_alone() -> None:
    """Two samples side by side, as intervals of one row; pictures of 4, 3, 4 and 9 patches. Absolute 1e-5."""
    model = opened(built())
    row = batch("a*b*c", "*de*f")
    whole = batch("a*b*c*de*f")
    second = (torch.arange(10) >= 5).long()[None]
    media = whole.media["image"]
    own = second[0, media.order]
    whole = replace(
        whole,
        enter=second,
        exit=second + 1,
        positions=torch.arange(10)[None] % 5,
        media={"image": replace(media, enter=own, exit=own + 1)},
    )
    with model.inference():
        apart, packed = model(row).hidden, model(whole).hidden
    torch.testing.assert_close(packed.view(2, 5, 16), apart, atol=1e-5, rtol=0)
    assert len({la.count for la in model.encode("image", row).layouts}) > 1


def test_kinds_of_media_stand_side_by_side() -> None:
    """The pictures of two rows told apart as two kinds, whose rows then alternate: the same to the bit."""
    made = batch("a*b*", "*c*d")
    torch.manual_seed(0)
    fusion = opened(FUSION.build(dim=16, depth=2))
    layouts = tuple(Layout((n + 1,)) for n in range(4))
    pieces, media = torch.randn(10, 16).split([1, 2, 3, 4]), made.media["image"]
    hidden = torch.randn(2, 4, 16)

    def out(kinds: dict[str, list[int]]) -> Tensor:
        features = {
            k: Features(torch.cat([pieces[i] for i in n]), tuple(layouts[i] for i in n)) for k, n in kinds.items()
        }
        places = {k: {v: getattr(media, v)[n] for v in ("row", "enter", "exit", "order")} for k, n in kinds.items()}
        split = replace(made, media={k: replace(media, **places[k]) for k in kinds})
        with torch.no_grad():
            return fusion.blocks[0](hidden, fusion.view(fusion.memory(features, split), split))

    assert torch.equal(out({"image": [0, 2], "video": [1, 3]}), out({"image": [0, 1, 2, 3]}))


# ---- what begins as nothing --------------------------------------------------------------------------------------
def test_a_column_without_a_picture_gets_nothing_from_the_attention() -> None:
    """With the feed-forward gate closed the first two columns stay as they are, exactly; those behind do not."""
    model = built()
    with torch.no_grad():
        model.fusion.blocks[0].attend_gate.fill_(1.0)
        made, hidden = batch("ab*c"), torch.randn(1, 4, 16)
        fusion = model.fusion
        out = fusion.blocks[0](hidden, fusion.view(fusion.memory(features(model, made), made), made))
        assert torch.equal(out[:, :2], hidden[:, :2])
        assert bool((out[:, 2:] != hidden[:, 2:]).any(-1).all())
        assert torch.equal(fusion.blocks[0](hidden, fusion.view(None, made)), hidden)


def test_text_without_pictures_runs_every_block_and_adds_nothing_of_them() -> None:
    """What sharded training needs: every weight has a gradient, and that of what only pictures reach is zero."""
    model = opened(built())
    text = batch("abcd")
    plain = model(text).hidden
    model.run_all_parts = True
    hidden = model(text).hidden
    assert torch.equal(hidden, plain)
    hidden.sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("llm.lm_head"):
            continue
        assert parameter.grad is not None, name
        if name.startswith(("encoders", "connectors", "fusion.marker")) or ".attn." in name.partition("fusion.")[2]:
            assert not parameter.grad.any(), name


# ---- memory and cache --------------------------------------------------------------------------------------------
def test_keys_and_values_of_pictures_are_computed_once_for_an_answer() -> None:
    """Two gated blocks before blocks 0 and 2; eight tokens; without a cache the answer is the same."""
    model = opened(built())
    calls: list[int] = []
    for block in model.fusion.blocks:
        block.attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    made = batch("ab*c", "d*ef")
    found = generate(model, made, stop=lambda ids: False, sampling=Sampling(max_tokens=8))
    assert len(calls) == len(model.fusion.blocks) == 2
    again: list[list[int]] = [[], []]
    for _ in range(8):
        rows = ["ab*c", "d*ef"]
        longer = batch(*(row + "x" * len(again[0]) for row in rows))
        for r, ids in enumerate(again):
            longer.tokens[r, 4:] = torch.tensor(ids)
        with model.inference():
            logits = model.logits(model(longer).hidden[:, -1])
        for ids, token in zip(again, logits.argmax(-1).tolist(), strict=True):
            ids.append(token)
    assert found == again
    other = generate(model, batch("ab*c", "d*ef", seed=3), stop=lambda ids: False, sampling=Sampling(max_tokens=8))
    assert other != found, "answers that do not depend on the picture prove nothing"


# ---- settings ----------------------------------------------------------------------------------------------------
def test_gates_begin_shut_but_at_starter_scale() -> None:
    """There alpha alone is open, so what is behind it learns from the first step on."""
    gates = [built(replace(CONFIG, fusion=f)).fusion.blocks[0] for f in (FUSION, FUSION.tiny(), FUSION.starter())]
    assert [(b.attend_gate.item(), b.feed_gate.item()) for b in gates] == [(0.0, 0.0), (0.0, 0.0), (0.5, 0.0)]


def test_gated_blocks_stand_where_they_are_said_to() -> None:
    """Of seven blocks: every third from the third on are the third and the sixth."""
    fusion = opened(replace(FUSION, every=3, first=2).build(dim=16, depth=7))
    made = batch("abc")
    view = fusion.view(None, made)
    hidden = torch.randn(1, 3, 16)

    class Ctx:
        memory = view

    changed = []
    for index in range(7):
        with torch.no_grad():
            out = fusion.around(index, _Same(), hidden, Ctx())  # type: ignore[arg-type]
        changed.append(not torch.equal(out, hidden))
    assert [i for i, c in enumerate(changed) if c] == [2, 5]


class _Same(nn.Module):
    def forward(self, hidden: Tensor, ctx: object) -> Tensor:
        return hidden


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="every is 0; it must be at least 1"):
        replace(FUSION, every=0)
    with pytest.raises(ConfigError, match="the first gated block stands before block 9, the LLM has 3"):
        replace(FUSION, first=9).build(dim=16, depth=3)
    with pytest.raises(ConfigError, match="latents is 0; a resampler needs at least 1"):
        Perceiver.Config(latents=0, heads=1, head_dim=1, act="gelu")


def test_a_model_of_transformers_is_refused() -> None:
    llm = HFCausal.Config(config={"model_type": "gpt_neox"}).tiny()
    model = built(replace(CONFIG, llm=llm))
    with pytest.raises(ConfigError, match="no fusion can stand around"):
        model(batch("ab*c"))
