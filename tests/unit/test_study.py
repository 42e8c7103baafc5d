"""Claims as experiments: arms are run once, asked the same, and each claim gets its verdict. About 20 s."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tuned_fixtures
from compare_fixtures import Quiet

from quintet.data.sources import open_source
from quintet.errors import ConfigError
from quintet.lab.align import method_names
from quintet.lab.claims import CLAIMS, Study, study
from quintet.lab.claims.claim import Expected
from quintet.lab.claims.measure import Measured, measured
from quintet.lab.claims.pools import POOLS
from quintet.lab.claims.run import _asking, _name, _tested, _untestable
from quintet.lab.claims.swap import margins
from quintet.lab.claims.told import _lines
from quintet.lab.pairs import Work
from quintet.model.checkpoint import read_json, write_json
from quintet.serving.engine import Engine
from quintet.values import Node, Sample, Text, Turn

scenes, run = tuned_fixtures.scenes, tuned_fixtures.run


def asked(run: Path, scenes: Path, out: Path, *claims: str, share: tuple[int, int] = (1, 1)) -> Study:
    return Study(claims=claims, start=run, out=out, seeds=(0, 1), steps=2, limit=8, scenes=scenes, share=share)


def run_whole(claim: dict[str, Any]) -> bool:
    """Whether every arm ran; what tiny models say may leave a claim not testable all the same."""
    return bool(claim["arms"])


def test_a_study_says_of_every_claim_whether_it_holds_and_by_how_much(run: Path, scenes: Path, tmp_path: Path) -> None:
    found = study(asked(run, scenes, tmp_path / "out", "P4", "P7"), Quiet())
    assert [claim["id"] for claim in found["claims"]] == ["P4", "P7"]
    for claim in found["claims"]:
        assert run_whole(claim)
        assert set(claim["arms"]) == set(CLAIMS[claim["id"]].arms)
        for each in claim["expects"]:
            assert each["interval"][0] <= each["gain"] <= each["interval"][1]
    folders = {path.name for path in (tmp_path / "out").glob("*-[01]")}
    assert len(folders) == 2 * 5, "two seeds of five different arms"
    page = (tmp_path / "out" / "claims.html").read_text()
    assert [page.count(f"<h2>{each['id']} (") for each in found["claims"]] == [1] * len(found["claims"])
    assert page.count("<svg") == sum(
        len({name for measures in each["arms"].values() for name in measures}) for each in found["claims"]
    )
    text = (tmp_path / "out" / "claims.md").read_text()
    assert "| P4 (mDPO) |" in text
    assert "| arm | CHAIR-i ↓ | VQA | POPE F1 | recall | words | reward of the chosen |" in text
    assert f"| anchor | {found['claims'][0]['arms']['anchor']['scenes.chair']['mean']:.3f} [" in text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    again = study(asked(run, scenes, tmp_path / "out", "P4", "P7"), Quiet())
    assert again == found
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}


def test_policies_of_a_study_share_their_reward_models(
    run: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tiny model says nothing that could be compared.
    monkeypatch.setitem(cast(dict[str, Any], POOLS), "preferred", POOLS["truth"])
    found = study(asked(run, scenes, tmp_path / "out", "P12", "P13"), Quiet())
    assert all(run_whole(claim) for claim in found["claims"])
    models = sorted((tmp_path / "out").glob("reward-*"))
    assert len(models) == 2 * 2, "with facts and without, two seeds"
    told = {}
    for model in models:
        [stage] = read_json(model / "recipe.json")["recipe"]["stages"]
        told[model] = stage["reward"]["facts"]
        assert not (model / "eval").exists(), "a reward model is asked nothing"
    assert sorted(told.values()) == [False, False, True, True]
    for label, facts in (("plain", False), ("facts", True)):
        arm = CLAIMS["P12"].arms[label]
        used = read_json(tmp_path / "out" / f"{_name(arm)}-0" / "recipe.json")["reward"]
        assert told[Path(used)] is facts
        assert {"judge:accuracy", "rollouts:truth"} <= found["claims"][0]["arms"][label].keys()


def test_shares_of_a_study_make_one_and_what_is_not_there_is_not_testable(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    half = study(asked(run, scenes, tmp_path / "out", "P4", share=(1, 2)), Quiet())
    assert half["claims"][0]["verdict"] == "not testable"
    assert "not run yet" in half["claims"][0]["why"]
    whole = study(asked(run, scenes, tmp_path / "out", "P4", share=(2, 2)), Quiet())
    assert not run_whole(half["claims"][0])
    assert run_whole(whole["claims"][0])
    with pytest.raises(ConfigError, match="under other conditions"):
        study(Study(claims=("P4",), start=run, out=tmp_path / "out", steps=3, scenes=scenes), Quiet())


def test_an_arm_that_fails_makes_its_claim_not_testable_and_stops_nothing(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    """A tiny model says nothing, so there is nothing to rate: P8's free answers cannot be made."""
    found = study(asked(run, scenes, tmp_path / "out", "P8", "P4"), Quiet())
    one, two = found["claims"]
    assert one["verdict"] == "not testable"
    assert "no pair could be made" in one["why"]
    assert run_whole(two)


def test_claims_name_methods_pools_and_arms_that_exist() -> None:
    for claim in CLAIMS.values():
        assert len(claim.arms) > 1
        for arm in (arm for each in claim.arms.values() for arm in (each, each.reward) if arm):
            assert not arm.method or arm.method in method_names()
            assert arm.pairs in POOLS
        for each in (*claim.expects, *claim.needs.values()):
            assert {each.better, *filter(None, (each.than, *(each.beyond or ())))} <= claim.arms.keys()
        assert claim.not_run, "methods.md asks for more of every claim than starter scale gives"
    with pytest.raises(ConfigError, match="no claim 'P99'"):
        Study(claims=("P99",), start=Path(), out=Path())


def test_pairs_are_labelled_right_where_the_chosen_answer_has_fewer_false_claims(scenes: Path, tmp_path: Path) -> None:
    made_up = (
        row for row in POOLS["truth"](Work(scenes=scenes, rows=20)) if len(row["rejected"]) >= len(row["chosen"])
    )
    rows = [row for row, _ in zip(made_up, range(4), strict=False)]
    swapped = rows[1] | {"chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]}
    tie = rows[2] | {"rejected": rows[2]["chosen"]}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows[0], swapped, tie, rows[3])))
    write_json(tmp_path / "recipe.json", {"data": {"dpo": {"path": str(tmp_path / "pairs.jsonl")}}})
    found = measured("pairs:right", [tmp_path], scenes=scenes, template=None)  # type: ignore[arg-type]
    assert found.mean == 2 / 3, "two right, one wrong, and one that nobody could tell"


def test_a_margin_is_what_the_true_description_loses_with_another_picture(run: Path, scenes: Path) -> None:
    """With one picture alone the other one is the same, so nothing is lost; a piece of it is another picture."""
    engine = Engine.open(run)
    [(same, piece, tokens)] = margins(engine, scenes, limit=1)
    assert same == 0.0
    assert piece != 0.0
    assert tokens > 5
    again, others = list(margins(engine, scenes, limit=2)), list(margins(engine, scenes, limit=2))
    assert again == others
    assert again[0][1:] == (piece, tokens)
    assert again[0][0] != 0.0


def test_pools_of_the_claims_differ_from_the_method_s_in_one_thing(scenes: Path) -> None:
    work = Work(scenes=scenes, rows=20)
    plain, blind, equal, shuffled = (
        list(POOLS[name](work))[:20] for name in ("truth", "blind", "truth-equal", "truth-shuffled")
    )
    assert [{k: v for k, v in row.items() if k not in ("id", "image")} for row in plain] == blind
    place = scenes / "blind.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in blind), encoding="utf-8")
    assert not any(open_source(place).sample(index).media() for index in range(len(blind)))
    assert {row["rejected_score"] for row in equal} == {1.0}
    assert sorted(row["rejected_score"] for row in shuffled) == sorted(row["rejected_score"] for row in plain)
    assert [row["rejected"] for row in shuffled] == [row["rejected"] for row in plain]


def test_where_nothing_can_be_seen_a_claim_is_not_testable() -> None:
    expects = [{"apart": True, "interval": [0.0, 0.0], "better": "a", "than": "b", "measure": "scenes.vqa"}]
    facts: dict[str, Any] = {"arms": {"tuned": {"scenes.chair": {"mean": 0.3}}}, "needs": [], "expects": expects}
    assert _untestable(facts) == "a and b do not differ in scenes.vqa"
    for changed in ({"apart": False}, {"interval": [0.0, 0.1]}):
        assert _untestable(facts | {"expects": [expects[0] | changed]}) == ""
    assert "nothing to lower" in _untestable(facts | {"arms": {"tuned": {"scenes.chair": {"mean": 0.01}}}})
    assert _untestable({"arms": {}, "needs": [], "expects": []}) == ""
    for holds, why in ((True, ""), (False, "nothing fell")):
        assert _untestable({"arms": {}, "needs": [{"else": "nothing fell", "holds": holds}], "expects": []}) == why


@pytest.mark.parametrize(("without", "verdict"), [(0.1, "not testable"), (-0.1, "supported")])
def test_an_anchor_stops_a_fall_only_where_there_is_one(
    without: float, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P4: chosen answers that gain without the anchor leave it nothing to stop, however much more they gain with it."""
    from quintet.lab.claims import run as module

    study = Study(claims=("P4",), start=tmp_path, out=tmp_path, seeds=(0,))
    arms = CLAIMS["P4"].arms
    rewards = {f"{_name(arms['without'])}-0": without, f"{_name(arms['anchor'])}-0": 0.3}
    for name in rewards:
        for task in CLAIMS["P4"].shows:
            (tmp_path / name / "eval").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "eval" / f"{task}.json").write_text("{}")

    def known(name: str, runs: list[Path], **_: object) -> Measured:
        better = rewards[runs[0].name] if name == "reward_won" else -rewards[runs[0].name]
        return Measured([np.array([[better, 1.0]])], lambda total: total[..., 0] / total[..., 1])

    monkeypatch.setattr(module, "measured", known)
    found = module._judged(study, CLAIMS["P4"], tmp_path, None, {})  # type: ignore[arg-type]
    assert found["verdict"] == verdict
    assert found["why"] == (
        "" if verdict == "supported" else "without the anchor they do not become less likely either"
    )
    text = "\n".join(_lines({"seeds": [0], "steps": 1, "limit": 1, "claims": [found]}))
    assert f"| **{verdict}**" in text
    assert f"<br>not run: {CLAIMS['P4'].not_run} |" in text
    assert f"needs without below 0, reward_won: {-without:+.3f}" in text


def test_a_difference_counts_only_where_its_interval_lies_on_one_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from quintet.lab.claims import run as module

    rng = np.random.default_rng(0)
    wrong = {"a": rng.random(200) < 0.1, "b": rng.random(200) < 0.4, "c": rng.random(200) < 0.4}

    def known(name: str, runs: list[Path], **_: object) -> Measured:
        sums = np.stack([wrong[runs[0].name].astype(float), np.ones(200)], axis=1)
        return Measured([sums], lambda total: total[..., 0] / total[..., 1])

    monkeypatch.setattr(module, "measured", known)
    folders = {name: [tmp_path / name] for name in wrong}
    of = lambda better, than, **more: _tested(  # noqa: E731
        Expected(better=better, than=than, measure="x", lower=True, **more),
        folders,
        tmp_path,
        None,  # type: ignore[arg-type]
    )
    assert of("a", "b")["holds"]
    assert not of("b", "a")["holds"]
    assert not of("b", "c")["holds"]
    assert of("b", "c", apart=False, room=0.15)["holds"]
    assert json.dumps(of("a", "b"))
    # b is ahead of a by -0.3, c of a by as much: neither by more.
    assert of("a", "b", beyond=("b", "c"))["holds"]
    assert not of("a", "b", beyond=("a", "c"))["holds"]
    assert of("a", "")["gain"] == -wrong["a"].mean()


def test_a_condition_stands_behind_every_question_of_an_arm() -> None:
    heard: list[str] = []

    def answer(samples: Sequence[Sample]) -> list[str]:
        heard.extend("".join(part.text for part in s.root.turns[-1].parts if isinstance(part, Text)) for s in samples)
        return ["yes"] * len(samples)

    asked = [Sample(Node((Turn("user", (Text("One?"),)),))), Sample(Node((Turn("user", (Text("Two?"),)),)))]
    assert _asking(answer, "Rating 4.")(asked) == ["yes", "yes"]
    assert heard == ["One? Rating 4.", "Two? Rating 4."]
    assert _asking(answer, "") is answer
    assert CLAIMS["P19"].arms["conditioned"].asks.startswith("Rating 4.")
