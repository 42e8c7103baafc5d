"""Answers of the model's own as training data: how they are drawn, what is known of them, and runs that go on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tuned_fixtures
from safetensors.torch import load_file

from quintet.answers import Answer
from quintet.components.lora import lora_parameters
from quintet.data.sources import open_source
from quintet.errors import CheckpointError, ConfigError, DataError, TrainingError
from quintet.lab.align import Start
from quintet.lab.pairs import Work, build
from quintet.lab.rewards import Base, _learnt, _lent, reward_of, value_of
from quintet.lab.run import Job, train
from quintet.model.checkpoint import TRAINED
from quintet.training.folder import Metrics, RunFolder
from quintet.training.loop import Interrupted, Settings
from quintet.training.objectives import rewards
from quintet.training.objectives.policy import Policy
from quintet.training.objectives.reward import Reward
from quintet.training.optim import set_trainable
from quintet.training.rolling import continued
from quintet.training.rollout import Rollouts
from quintet.training.stage import Rate
from quintet.training.symbolic import correct, symbolic
from quintet.values import Node, Sample
from systems import Small, says, shown, user

scenes, run = tuned_fixtures.scenes, tuned_fixtures.run


@pytest.fixture(scope="module")
def judged(scenes: Path, run: Path) -> Path:
    """A reward model."""
    build("truth", Work(scenes=scenes, rows=20), scenes / "truth.jsonl")
    job = Job(recipe="reward", scale="tiny", out=scenes.parent / "reward", data={"": scenes / "truth.jsonl"},
              start=Start(run), scenes=scenes)  # fmt: skip
    train(job)
    return job.out


def test_answers_behind_a_prompt_are_what_the_template_would_have_written() -> None:
    """The prompt with three leaves, then the ids of the answers: the same columns as a tree of three answers has."""
    small = Small("llava15")
    texts = ("A red circle.", "No.", "Two blue squares are here.")
    asked = user(shown(1), "What is here?")
    whole = small.processor.tokens(Sample(Node((asked,), tuple(Node((says(t),), answer=Answer(0.0)) for t in texts))))
    prompt = small.processor.tokens(Sample(Node((asked,), tuple(Node(()) for _ in texts))), open=True)
    ids = [whole.ids[(whole.enter == node) & (whole.weight > 0)].tolist() for node, _ in whole.answers]
    made = continued(prompt, ids)
    assert len(made) == len(whole)
    paths = []
    for tokens in (whole, made):
        paths.append(
            [
                [
                    (int(tokens.ids[c]), int(tokens.position[c]), float(tokens.weight[c]))
                    for c in sorted(range(len(tokens)), key=lambda c: int(tokens.order[c]))
                    if tokens.enter[c] <= node < tokens.exit[c]
                ]
                for node, _ in tokens.answers
            ]
        )
    assert paths[0] == paths[1]


@pytest.mark.parametrize("method", ["grpo", "llava_rlhf"])
def test_a_policy_that_was_stopped_goes_on_to_the_same_bits(
    method: str, run: Path, scenes: Path, judged: Path, tmp_path: Path
) -> None:
    """Killed between steps of an iteration, whose answers are read back, and at the border of two."""
    reward = str(judged) if method == "llava_rlhf" else "exact"
    stage = Start(run).aligned(method).stages[0].name
    sets = [f"stages.{stage}.steps=4", f"stages.{stage}.batch=2", f"stages.{stage}.rollouts.prompts=4"]
    whole = Job(recipe=method, scale="tiny", out=tmp_path / "whole", scenes=scenes, start=Start(run), reward=reward,
                sets=sets)  # fmt: skip
    train(whole)
    for after in (1, 2, 3):
        part = replace(whole, out=tmp_path / f"part{after}")
        with pytest.raises(Interrupted):
            train(replace(part, settings=Settings(stop_after=after)))
        train(replace(part, resume=True))
        for file in sorted((whole.out / "model").glob("*.safetensors")):
            assert (part.out / "model" / file.name).read_bytes() == file.read_bytes(), (after, file.name)
    drawn = sorted(path.name for path in (whole.out / "rollouts").glob("*.json"))
    # PPO learns twice from each iteration, GRPO once.
    assert drawn == [f"{stage}-{k}.json" for k in range(1 if method == "llava_rlhf" else 2)]


def test_what_is_known_of_an_iteration_is_in_its_files(run: Path, scenes: Path, tmp_path: Path) -> None:
    job = Job(recipe="grpo", scale="tiny", out=tmp_path / "out", scenes=scenes, start=Start(run), reward="truth",
              sets=["stages.grpo.data.pairs=descriptions"])  # fmt: skip
    train(job)
    facts = json.loads((tmp_path / "out" / "rollouts" / "grpo-0.json").read_text())
    held = load_file(tmp_path / "out" / "rollouts" / "grpo-0.safetensors")
    assert len(facts["rewards"]) == 4
    assert all(len(each) == 3 for each in facts["rewards"])
    assert held["lengths"].shape == (4, 3)
    total = int(held["lengths"].sum())
    assert all(len(held[name]) == total for name in ("ids", "old", "reference", "advantage"))
    # The policy is the reference still.
    assert float((held["old"] - held["reference"]).abs().max()) < 1e-5
    assert facts["kl"] == pytest.approx(0, abs=1e-3)
    for group, lengths in zip(held["advantage"].split(held["lengths"].sum(1).tolist()), held["lengths"], strict=True):
        per_answer = [float(each[0]) for each in group.split(lengths.tolist())]
        assert sum(per_answer) == pytest.approx(0, abs=1e-4)
    first = next(iter(Metrics.read(RunFolder(tmp_path / "out").metrics)))
    assert first["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert first["clipped"] == 0
    assert first["drift"] == pytest.approx(0.0, abs=1e-5)
    drawn = [reward for each in facts["rewards"] for reward in each]
    assert min(drawn) - 1e-6 <= first["reward"] <= max(drawn) + 1e-6
    assert first["length"] == pytest.approx(float(held["lengths"].float().mean()), rel=0.5)


def test_answers_that_are_worth_the_same_are_said_to_teach_nothing(
    run: Path, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tiny model answers no question."""
    train(Job(recipe="grpo", scale="tiny", out=tmp_path / "out", scenes=scenes, start=Start(run), reward="exact"))
    assert "stage grpo, iteration 0: all answers of each prompt are worth the same" in caplog.text


def test_a_reward_model_learns_and_is_asked(judged: Path, scenes: Path) -> None:
    rows = list(Metrics.read(RunFolder(judged).metrics))
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=0.1)
    assert (judged / "model" / "score.safetensors").is_file()
    assert callable(reward_of(str(judged), scenes=scenes))


def test_a_reward_model_is_told_what_it_was_told_when_it_learnt(
    judged: Path, scenes: Path, run: Path, tmp_path: Path
) -> None:
    """Facts stand behind the answers of one that read facts; without them it finds them worth something else."""
    plain = Job(recipe="reward", scale="tiny", out=tmp_path / "plain", data={"": scenes / "truth.jsonl"},
                start=Start(run), scenes=scenes, sets=["stages.reward.reward.facts=false"])  # fmt: skip
    train(plain)
    sample = open_source(scenes / "train.json").sample(0)
    name = Path(sample.media()[0].ref.name).stem
    captions = tmp_path / "captions.json"
    for model, tells in ((judged, True), (plain.out, False)):
        found = []
        for said in (["Nothing is here."], "There is a red ball."):
            captions.write_text(json.dumps({name: said}), encoding="utf-8")
            found.append(reward_of(str(model), scenes=scenes, facts=captions)([sample], [["A circle.", "A star."]])[0])
        assert (found[0] != found[1]) is tells
    captions.write_text('{"other": "A cat."}', encoding="utf-8")
    asked = reward_of(str(judged), scenes=scenes, facts=captions)
    with pytest.raises(DataError, match=r"nothing is known of 'images.*captions.json holds 1 pictures"):
        asked([sample], [["A circle."]])
    with pytest.raises(CheckpointError, match="is no reward model, it has no score head"):
        reward_of(str(run), scenes=scenes)


def test_a_reward_model_over_the_same_base_lends_its_adapters(judged: Path, scenes: Path, run: Path) -> None:
    """Two adapters on one base give what two models do; a reward model of another base is loaded beside."""
    stage = Start(run).aligned("llava_rlhf").stages[0]
    model, processor = Start(run).load(), Start(run).processor()
    model.with_score()
    set_trainable(model, stage.train)
    for name, p in lora_parameters(model):
        if name.endswith("lora_B"):
            torch.nn.init.normal_(p, std=0.1)
    samples = [open_source(scenes / "train.json").sample(n) for n in range(3)]
    said = [["A circle.", "A star."]] * 3
    base = Base(model, processor, run, stage)
    assert _lent(judged, base) is not None
    lent = reward_of(str(judged), scenes=scenes, base=base)(samples, said)
    loaded = reward_of(str(judged), scenes=scenes)(samples, said)
    torch.testing.assert_close(torch.tensor(lent), torch.tensor(loaded), atol=1e-5, rtol=0)
    assert _lent(judged, replace(base, run=judged)) is None
    everything = replace(stage, train=stage.train | {"connectors": Rate(lr=1.0)})
    assert _lent(judged, replace(base, stage=everything)) is None


def test_a_value_model_begins_as_the_reward_model_over_the_same_base(
    judged: Path, run: Path, scenes: Path, tmp_path: Path
) -> None:
    """Adapters and head, where nothing has moved them yet; any other reward leaves them as they begin."""
    still = ["stages.ppo.train.llm.lr=1e-30", "stages.ppo.train.score.lr=1e-30"]
    job = Job(recipe="llava_rlhf", scale="tiny", out=tmp_path / "out", scenes=scenes, start=Start(run),
              reward=str(judged), sets=still)  # fmt: skip
    said = list[str]()
    train(replace(job, note=said.append))
    assert f"stage 'ppo': the value model begins as {judged}" in said
    held, lent = (load_file(RunFolder(f).stage(s) / TRAINED) for f, s in ((job.out, "ppo"), (judged, "reward")))
    begun = {name: name.replace(".lora_", ".beside.value.lora_") for name in lent if ".lora_" in name}
    assert begun
    assert all(torch.equal(held[there], lent[name]) for name, there in begun.items())
    assert all(torch.equal(held[f"score.{part}"], lent[f"score.{part}"]) for part in ("weight", "bias"))
    assert any(bool(lent[name].any()) for name in lent if name.endswith("lora_B")), "the reward model has learnt"
    policy = [held[name] for name in held if name.endswith("lora_B") and ".beside." not in name]
    assert max(float(each.abs().max()) for each in policy) < 1e-20


def test_only_a_reward_model_of_the_same_rank_over_the_same_base_is_a_value_models_beginning(
    judged: Path, run: Path
) -> None:
    """What it adds is the same where its strength, alpha over rank, is another."""
    stage = Start(run).aligned("llava_rlhf").stages[0]
    own = stage.train["llm"].lora
    assert own is not None

    def begun(**changed: object) -> dict[str, torch.Tensor]:
        rate = replace(stage.train["llm"], lora=replace(own, **changed))
        base = Base(Start(run).load(), Start(run).processor(), run, replace(stage, train={**stage.train, "llm": rate}))
        return value_of(str(judged), base)

    plain, strong = begun(), begun(alpha=4 * own.alpha)
    assert plain.keys() == strong.keys() != set()
    for name in plain:
        torch.testing.assert_close(strong[name] * (4.0 if name.endswith("lora_B") else 1.0), plain[name])
    assert begun(rank=2 * own.rank) == begun(beside=()) == {}
    assert value_of("truth", None) == {}


def test_a_reward_model_of_before_there_was_a_request_is_read_as_it_learnt(judged: Path, tmp_path: Path) -> None:
    """Its recipe says nothing of one."""
    assert _learnt(judged).asked
    facts = json.loads((judged / "recipe.json").read_text())
    del facts["recipe"]["stages"][0]["reward"]["asked"]
    (tmp_path / "recipe.json").write_text(json.dumps(facts))
    assert _learnt(tmp_path) == Reward(centering=1e-3, center="mean", asked=False, facts=True)


def test_values_are_read_by_adapters_of_their_own(run: Path, scenes: Path, tmp_path: Path) -> None:
    """PPO as in LLaVA-RLHF: both sets learn, and only the policy's is folded into the model."""
    job = Job(recipe="llava_rlhf", scale="tiny", out=tmp_path / "out", scenes=scenes, start=Start(run), reward="truth")
    train(job)
    held = load_file(RunFolder(job.out).stage("ppo") / TRAINED)
    value = {name for name in held if ".beside.value." in name}
    own = {name.replace(".beside.value.", ".") for name in value}
    assert own
    assert {name for name in held if ".lora_" in name} == own | value
    assert all(bool(held[name].any()) for name in held if name.endswith("lora_B")), "both have learnt"
    base, aligned = (load_file(folder / "model" / "llm.safetensors") for folder in (run, job.out))
    assert base.keys() == aligned.keys()


def test_facts_that_are_none_are_refused_before_a_reward_model_learns(
    scenes: Path, run: Path, judged: Path, tmp_path: Path
) -> None:
    job = Job(recipe="reward", scale="tiny", out=tmp_path / "out", data={"": scenes / "truth.jsonl"}, start=Start(run),
              scenes=scenes, facts=tmp_path / "captions.json")  # fmt: skip
    for text, message in (
        ("[]", "an object of captions by picture is expected, this is a list"),
        ('{"a": [1]}', r"captions.json, 'a': \[1\] is no caption and no list of captions"),
        ('{"a": "A cat."}', "nothing is known of 'images.*--facts FILE, or judge without facts"),
        ("{", "no JSON of captions by picture"),
    ):
        (tmp_path / "captions.json").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            train(job)
        assert not job.out.exists()


def test_rules_add_to_a_reward_what_the_rows_say(run: Path, scenes: Path, tmp_path: Path) -> None:
    """LLaVA-RLHF's: a right choice earns, and length costs; both are written beside the reward model's number."""
    rows = [json.loads(line) for line in open_rows(scenes, tmp_path)]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(r | {"length_bonus": 0.5}) + "\n" for r in rows), encoding="utf-8")
    job = Job(recipe="llava_rlhf", scale="tiny", out=tmp_path / "out", data={"": data}, root=scenes, scenes=scenes,
              start=Start(run), reward="truth")  # fmt: skip
    train(job)
    facts = json.loads(next((tmp_path / "out" / "rollouts").glob("*.json")).read_text())
    lengths = load_file(next((tmp_path / "out" / "rollouts").glob("*.safetensors")))["lengths"]
    most = Start(run).aligned("llava_rlhf").stages[0].rollouts
    assert most is not None
    assert most.length == 10
    expected = (-10 * 0.5 * lengths / most.max_tokens).flatten().tolist()
    assert [each for row in facts["symbolic"] for each in row] == pytest.approx(expected, rel=1e-5)
    for answer, kind, worth in (
        ("B. It is red.", 3, 1.0), ("The correct option is B.", 3, 1.0), ("A. It is red.", 3, 0.0), ("B.", 1, 0.0),
        ("No, it is not.", 6, 0.5), ("Yes.", 6, -0.5), ("Perhaps.", 6, 0.0), ("Yes.", 7, 0.0), ("No.", 7, 0.0),
    ):  # fmt: skip
        assert correct(answer, {"caption_type": kind}) == worth
    assert symbolic("B.", 0.25, {"caption_type": 3, "length_bonus": 2.0}, most) == 2 * 1.0 - 10 * 2.0 * 0.25
    assert symbolic("B.", 0.25, {}, most) == 0.0, "a row that says nothing costs nothing"


def open_rows(scenes: Path, folder: Path) -> list[str]:
    build("descriptions", Work(scenes=scenes, rows=20), folder / "descriptions.jsonl")
    return (folder / "descriptions.jsonl").read_text(encoding="utf-8").splitlines()


def test_what_is_worth_nothing_is_named(scenes: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reward 'exakt'; did you mean 'exact'"):
        reward_of("exakt", scenes=scenes)
    with pytest.raises(ConfigError, match="at least 2"):
        Rollouts(group=1)
    with pytest.raises(ConfigError, match="clip"):
        Policy(clip=0.0)
    job = Job(recipe="grpo", scale="tiny", out=tmp_path / "out", scenes=scenes, start=Start(run),
              sets=["stages.grpo.rollouts.prompts=6"])  # fmt: skip
    with pytest.raises(TrainingError, match="no multiple of its batch"):
        train(job)


def test_a_group_that_learns_gets_better_at_what_is_rewarded() -> None:
    """One prompt, two tokens that may follow; the rewarded one becomes more likely, by the gradient alone."""
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    torch.manual_seed(0)
    for _ in range(20):
        drawn = torch.multinomial(logits.detach().softmax(-1), 8, replacement=True)
        advantage = rewards.group_advantages((drawn == 1).float(), torch.zeros(8, dtype=torch.int64))
        logps = logits.log_softmax(-1)[drawn]
        loss = rewards.policy_loss(logps, logps.detach(), advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(logits.detach().softmax(-1)[1]) > 0.9
