"""`quintet align` from end to end at tiny scale: methods, resumed, from a file, and what is missing. About 30 s."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tuned_fixtures
from safetensors.torch import load_file
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.config.override import override
from quintet.data.scenes import DETAILED
from quintet.errors import CheckpointError, ConfigError
from quintet.lab.align import Start, load_method, method_names
from quintet.lab.methods import settings
from quintet.lab.pairs import Work, build
from quintet.lab.run import Job, resolve, train
from quintet.training.folder import Metrics, RunFolder
from quintet.training.loop import Interrupted, Settings

TRUE = ("dpo", "mdpo", "povid", "halva", "silkie", "hsa_dpo", "rlhf_v")
"""Methods whose rows may be pairs from the truth: a tiny model, which says nothing, has no answers to compare."""


scenes, run = tuned_fixtures.scenes, tuned_fixtures.run


@pytest.fixture(scope="module")
def pairs(scenes: Path) -> dict[str, Path]:
    made = {}
    for name in ("truth", "phrases"):
        made[name] = scenes / f"{name}.jsonl"
        build(name, Work(scenes=scenes, rows=20), made[name])
    return made


def job(method: str, run: Path, pairs: dict[str, Path], out: Path) -> Job:
    recipe = Start(run).aligned(method)
    data = {s.name: pairs["phrases" if method == "halva" else "truth"] for s in recipe.stages}
    return Job(recipe=method, scale="tiny", out=out, data=data, start=Start(run))


@pytest.mark.parametrize("method", TRUE)
def test_a_method_trains_what_it_says_and_leaves_the_rest(
    method: str, run: Path, pairs: dict[str, Path], tmp_path: Path
) -> None:
    asked = job(method, run, pairs, tmp_path / "out")
    train(asked)
    recipe = resolve(asked)[1]
    learns = {part for stage in recipe.stages for part in stage.train}
    for file in sorted((run / "model").glob("*.safetensors")):
        before, after = load_file(file), load_file(tmp_path / "out" / "model" / file.name)
        assert before.keys() == after.keys()
        same = all(torch.equal(before[name], after[name]) for name in before)
        assert same != any(file.stem.startswith(part) for part in learns), file.stem
    assert (tmp_path / "out" / "model" / "processor.json").read_text() == (run / "model" / "processor.json").read_text()
    first = next(iter(Metrics.read(RunFolder(tmp_path / "out").metrics)))
    if method != "halva":
        # β times nothing apart yet: ln 2 a sigmoid.
        assert first["loss"] == pytest.approx(0.6931472 * sum(recipe.stages[0].preference.terms.values()), abs=2e-3)  # type: ignore[union-attr]


def test_a_term_that_keeps_conversations_is_refused_where_no_row_has_one(
    run: Path, pairs: dict[str, Path], tmp_path: Path
) -> None:
    """As in HALVA's published layout: without a word its KL would be nothing."""
    rows = [json.loads(line) for line in pairs["phrases"].read_text().splitlines()]
    bare = pairs["phrases"].with_name("bare.jsonl")
    bare.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "kept"}) + "\n" for row in rows))
    asked = replace(job("halva", run, pairs, tmp_path / "out"), data={"phrases": bare})
    with pytest.raises(ConfigError, match=r"bare\.jsonl have none.*`kept`.*terms=\{\"phrases\": 1.0\}"):
        train(asked)
    train(replace(asked, sets=('stages.phrases.preference.terms={"phrases": 1.0}',)))


@pytest.mark.parametrize("method", ["dpo", "rlhf_v", "povid"])
def test_an_alignment_that_was_stopped_goes_on_to_the_same_bits(
    method: str, run: Path, pairs: dict[str, Path], tmp_path: Path
) -> None:
    whole = job(method, run, pairs, tmp_path / "whole")
    train(whole)
    part = replace(whole, out=tmp_path / "part")
    with pytest.raises(Interrupted):
        train(replace(part, settings=Settings(stop_after=1)))
    train(replace(part, resume=True))
    for file in sorted((whole.out / "model").glob("*.safetensors")):
        assert (part.out / "model" / file.name).read_bytes() == file.read_bytes(), file.name


def test_pairs_are_made_once_and_kept_in_the_run(run: Path, scenes: Path, tmp_path: Path) -> None:
    asked = Job(recipe="dpo", scale="tiny", out=tmp_path / "out", scenes=scenes, start=Start(run))
    train(asked)
    rows = (tmp_path / "out" / "pairs" / "dpo.jsonl").read_text().splitlines()
    assert len(rows) == 24 or 0 < len(rows) <= 32
    assert {"chosen", "rejected", "image"} <= json.loads(rows[0]).keys()
    facts = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert facts["from"]["path"] == str(run)
    assert facts["scale"] == "tiny"


def test_every_method_says_its_paper_its_pairs_and_trains_something(run: Path) -> None:
    assert len(method_names()) >= 12
    for name in method_names():
        recipe = Start(run).aligned(name)
        assert recipe.paper.arxiv
        for stage in recipe.stages:
            assert stage.train
            assert stage.data.pairs
            # A model that is asked under a condition (DRESS) learnt it from its rows.
            asked = load_method(name, Start(run).processor()).asks
            assert recipe.template.user.after == asked + stage.template.user.after


def test_what_is_missing_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no method 'dpoo'; did you mean 'dpo'"):
        Start(run).aligned("dpoo")
    with pytest.raises(CheckpointError, match="no finished model"):
        Start(tmp_path).aligned("dpo")


def test_the_command_ends_with_what_changed_and_fails_when_a_capability_is_lost(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    args = ["align", "dpo", "--from", str(run), "--scenes", str(scenes), "--limit", "20", "--out"]
    done = CliRunner().invoke(app, [*args, str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "change.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert {"scenes.chair", "scenes.pope", "scenes.vqa", "scenes.caption", "perplexity of text"} <= set(names)
    assert {"scenes.chair: recall", "scenes.chair: words", "scenes.pope: recall"} <= set(names)
    assert all(row["interval"][0] <= row["interval"][1] for row in found["rows"])
    assert done.exit_code == int(found["failed"])
    assert "perplexity of text" in done.output
    again = CliRunner().invoke(app, [*args, str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "--resume" in again.output


def test_the_methods_are_listed_with_what_they_learn_by() -> None:
    done = CliRunner().invoke(app, ["recipes", "--methods", "--json"])
    found = {entry["name"]: entry for entry in json.loads(done.output)}
    assert list(found) == method_names()
    assert found["mdpo"]["learns"] == ["mdpo: sigmoid + unseen + anchor, llm (LoRA of rank 64)"]
    assert found["povid"]["pairs"] == "injected"
    assert all(entry["says"] for entry in found.values())
    assert "mdpo" in CliRunner().invoke(app, ["align", "--list"]).output
    assert CliRunner().invoke(app, ["recipes", "--methods", "--parts"]).exit_code == 2


def test_a_method_is_shown_with_what_can_be_set(run: Path) -> None:
    for name in method_names():
        stages = settings(name, "tiny")
        assert list(stages) == [stage.name for stage in Start(run).aligned(name).stages]
        for stage, found in stages.items():
            for path, value in found.items():
                # What is shown is what `--set` takes.
                override(Start(run).aligned(name), f"stages.{stage}.{path}={json.dumps(value)}")
    done = CliRunner().invoke(app, ["show", "stic"])
    assert done.exit_code == 0, done.output
    assert "stages.infused. as pairs, but:" in " ".join(done.output.split())
    assert "--set stages.pairs.preference.beta=…" in done.output.replace("\n", "")
    found = json.loads(CliRunner().invoke(app, ["show", "mdpo", "--scale", "starter", "--json"]).output)
    assert found["stages"]["mdpo"]["batch"] == 16
    assert "no scale 'big'" in CliRunner().invoke(app, ["show", "mdpo", "--scale", "big"]).stderr
    assert "did you mean the method 'mdpo'?" in CliRunner().invoke(app, ["show", "mdpp"]).stderr
    assert "did you mean 'llava15'?" in CliRunner().invoke(app, ["show", "llava16"]).stderr


def test_a_stop_while_pairs_are_made_says_how_to_go_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quintet.lab.run.own_rows", stopped)
    args = ("dpo", "--from", str(run), "--out", str(tmp_path / "out"))
    code, _, said = aligned(*args)
    assert code == 130
    assert "interrupted; go on with --resume" in said
    monkeypatch.undo()
    code, _, said = aligned(*args, "--resume")
    assert code == 0, said


def test_a_share_of_descriptions_is_spoilt_and_conversations_stay_true(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "spoilt.json"
    args = ["data", "spoil", str(scenes), "--out", str(out), "--conversations", "5"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    rows, true = json.loads(out.read_text()), json.loads((scenes / "train.json").read_text())
    described = json.loads((scenes / "train_captions.json").read_text())
    assert len(rows) == len(described) + 5
    known = [each["conversations"] for each in (*true, *described)]
    changed = [row for row in rows if row["conversations"] not in known]
    asked = [each["conversations"][0]["value"].removeprefix("<image>\n") for each in described]
    long = sum(each in DETAILED for each in asked)
    assert 0.6 * long < len(changed) <= long
    assert len({row["id"] for row in rows}) == len(rows)
    assert "is there already" in CliRunner().invoke(app, args).output


def aligned(*args: str) -> tuple[int, str, str]:
    """Exit code, what is printed, and what is said beside it."""
    done = CliRunner().invoke(app, ["align", *args, "--no-measure"])
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


def test_a_file_is_for_every_stage_of_preferences(
    run: Path, scenes: Path, pairs: dict[str, Path], tmp_path: Path
) -> None:
    args = ("povid", "--from", str(run), "--data", str(pairs["truth"]), "--root", str(scenes), "--json")
    code, said, _ = aligned(*args, "--out", str(tmp_path / "out"))
    assert code == 0
    assert json.loads(said) == {"model": str(tmp_path / "out" / "model")}
    facts = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert set(facts["data"]) == {"text", "noise"}
    assert not (tmp_path / "out" / "pairs").exists()


def test_what_cannot_be_compared_or_rewarded_is_refused_before_anything_is_written(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    out = ("--from", str(run), "--scenes", str(scenes), "--out", str(tmp_path / "out"))
    for args, words in (
        (("dpo", "--data", str(scenes / "train.json")), "train.json have none to compare"),
        (("llava_rlhf",), "nothing says what they are worth; name a reward: --reward RUN"),
        (("llava_rlhf", "--reward", "exact"), "a description has many; take truth"),
        (("grpo", "--reward", "exct"), "no reward 'exct'; did you mean 'exact'?"),
        (("dpo", "--set", "stages.dpo.data.pairs=ratted"), "no pairs 'ratted'; did you mean 'rated'?"),
        (("dpo", "--set", "stages.dpo.epochs=2"), "takes 2 steps; set stages.dpo.steps=null, too"),
        (("dpo", "--reward", "exact"), "--reward is for methods that learn from answers of their own"),
        (("dpo", "--set", 'stages.dpo.preference.terms={"sigmoid": -1}'), "terms.sigmoid is -1"),
        (("dpo", "--set", 'stages.dpo.preference.terms={"ipoo": 1}'), "did you mean 'ipo'"),
    ):
        code, _, said = aligned(*args, *out)
        assert code == 1, args
        assert words in said, said
        assert not (tmp_path / "out").exists(), args
    for args, words in ((("--margin", "nan"), "--margin"), (("--root", "nowhere"), "'nowhere' does not exist")):
        code, _, said = aligned("dpo", "--from", str(run), *args)
        assert code == 2
        assert words in said
    code, _, said = aligned("dpo", "--from", str(run), "--scenes", str(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "is no folder of Scenes" in said


def test_a_run_that_cannot_begin_leaves_nothing_in_the_way(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.json"
    out = ("dpo", "--from", str(run), "--data", str(data), "--out", str(tmp_path / "out"))
    data.write_text('[{"image": "lost.png", "question": "What?", "chosen": "This.", "rejected": "That."}]')
    (tmp_path / "lost.png").write_bytes(b"no picture")
    code, _, said = aligned(*out)
    assert code == 1
    assert "every sample was dropped" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "lost.png").unlink()
    for root, words in (((), "name it: --root FOLDER"), (("--root", str(tmp_path)), "--root names another folder")):
        code, _, said = aligned(*out, *root)
        assert code == 1
        assert "of the pictures of its first rows none is there" in said
        assert words in said
    same = {"image": "lost.png", "question": "What?", "chosen": "This.", "rejected": "This."}
    data.write_text(json.dumps([same] * 60))
    code, _, said = aligned(*out)
    assert code == 1
    assert "row 1, field rejected: it is the same as chosen" in said
    assert "all of the first 50 rows are faulty" in said


def test_what_a_reward_model_is_and_is_not_for(run: Path, pairs: dict[str, Path], scenes: Path, tmp_path: Path) -> None:
    made = tmp_path / "reward"
    told = ("--data", str(pairs["truth"]), "--root", str(scenes), "--scenes", str(scenes))
    code, said, err = aligned("reward", "--from", str(run), *told, "--out", str(made))
    assert code == 0, err
    assert "It tells the better answer in" in said
    assert f"Next: quintet align llava_rlhf --from {run} --reward {made}" in said.replace("\n", "")
    assert not (made / "change.json").exists(), "it is no model to talk to"
    captions = tmp_path / "captions.json"
    captions.write_text("{}")
    for args, words in (
        (("dpo", "--from", str(made)), "is a reward model and does not talk"),
        (("llava_rlhf", "--from", str(run), "--reward", str(run)), "is no reward model"),
        (("dpo", "--from", str(run), "--facts", str(captions)), "--facts are told to reward models"),
        (("llava_rlhf", "--from", str(run), "--reward", "truth", "--facts", str(captions)), "--facts are told to"),
    ):
        code, _, err = aligned(*args, "--out", str(tmp_path / "out"))
        assert code == 1, args
        assert words in err
        assert not (tmp_path / "out").exists()


def test_pairs_are_written_where_their_name_says_what_they_are(scenes: Path, tmp_path: Path) -> None:
    for args, ending in ((("data", "pairs", "truth", "--scenes", str(scenes)), ".jsonl"),
                         (("data", "spoil", str(scenes)), ".json")):  # fmt: skip
        found = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "pairs.txt")])
        assert found.exit_code == 1
        assert f"what is written ends in {ending}" in found.stderr
        if ending == ".jsonl":
            for option, words in (
                (("--judge", "http://127.0.0.1:9/v1"),
                 "pairs 'truth' ask no judge; rated, proxy, claims, corrected, graded, feedback do"),
                (("--frames", "2"), "pairs 'truth' show one picture; --frames is for proxy"),
            ):  # fmt: skip
                found = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "pairs.jsonl"), *option])
                assert words in found.stderr
        taken = tmp_path / f"pairs{ending}"
        taken.touch()
        found = CliRunner().invoke(app, [*args, "--out", str(taken)])
        assert found.exit_code == 1
        assert "is there already" in found.stderr


def test_another_model_at_the_same_place_is_another_start(tmp_path: Path) -> None:
    """Weights of equal size: the adapters of a reward model fit only those that they learnt over."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    weights = tmp_path / "model" / "llm.safetensors"
    weights.write_bytes(b"a" * 64)
    first = Start(tmp_path).identity()
    assert Start(tmp_path).identity() == first
    weights.write_bytes(b"a" * 63 + b"b")
    assert Start(tmp_path).identity() != first
