"""Judges: an endpoint on this machine that speaks OpenAI's protocol, and models of ours. About 10 s."""

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import tuned_fixtures
from source_rows import write
from test_eval_hallucination_files import question
from typer.testing import CliRunner

from conftest import picture
from quintet.cli.app import app
from quintet.errors import ConfigError
from quintet.evaluation.endpoint import EndpointJudge
from quintet.evaluation.judge import Asked, Rating
from quintet.evaluation.metrics.rated import Asking
from quintet.lab.judges import ModelJudge, judge_of, rater_of
from quintet.model.checkpoint import read_json
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Ref, Sample, Text, Turn

GOOD = "helpfulness: 4, visual faithfulness: 2.5\nEthical considerations: 5"


class Endpoint:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.says: str | bytes = GOOD
        self.reply: Callable[[Any], str] | None = None
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.seen.append((self.path, dict(self.headers), body))
                content = body["messages"][0]["content"]
                says = endpoint.reply(content) if endpoint.reply else endpoint.says
                held = {"choices": [{"message": {"role": "assistant", "content": says}}]}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(says if isinstance(says, bytes) else json.dumps(held).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def asked(self, n: int = -1) -> Any:
        """The content of a request's one message."""
        [message] = self.seen[n][2]["messages"]
        return message["content"]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


scenes, run = tuned_fixtures.scenes, tuned_fixtures.run


def test_an_endpoint_is_asked_once_and_what_it_said_is_kept(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    image = tmp_path / "a.png"
    picture(0).save(image)
    asked = Asked("What is here?", Ref("a.png", path=image))
    judge = EndpointJudge(endpoint.url + "/", cache=tmp_path / "kept", model="gpt")
    [rating] = judge.rate(asked, ["A cat."])
    assert rating is not None
    assert (rating.helpfulness, rating.faithfulness, rating.ethics) == (4, 2.5, 5)
    path, headers, body = endpoint.seen[0]
    assert (path, headers["Authorization"], body["model"]) == ("/v1/chat/completions", "Bearer secret", "gpt")
    shown, words = endpoint.asked()
    assert base64.b64decode(shown["image_url"]["url"].partition(",")[2]) == image.read_bytes()
    assert "What is here?" in words["text"]
    assert "A cat." in words["text"]
    assert judge.rate(asked, ["A cat."]) == [rating]
    assert EndpointJudge(endpoint.url, cache=tmp_path / "kept", model="gpt").rate(asked, ["A cat."]) == [rating]
    assert len(endpoint.seen) == 1
    [kept] = (tmp_path / "kept").glob("*.json")
    held = json.loads(kept.read_text())
    assert (held["text"], held["picture"], held["judge"]) == (GOOD, "a.png", f"{endpoint.url} (gpt)")
    assert "secret" not in kept.read_text()
    # Another answer, another question or another model is another request.
    judge.rate(asked, ["A dog."])
    EndpointJudge(endpoint.url, cache=tmp_path / "kept", model="other").rate(asked, ["A cat."])
    assert len(endpoint.seen) == 3


def test_a_caption_stands_for_the_picture_and_sentences_are_asked_one_by_one(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    judge = EndpointJudge(endpoint.url, cache=tmp_path)
    image = tmp_path / "a.png"
    picture(0).save(image)
    told = Asked("What is here?", Ref("a.png", path=image), caption="A red ball.")
    endpoint.says = "**Yes**, it is."
    assert judge.holds(told, ["There is a red circle."]) == [True]
    assert endpoint.asked().startswith("What is shown, in words: A red ball.\n"), "no picture goes with a caption"
    endpoint.says = "The answer is no."
    assert judge.holds(Asked(""), ["The digit 7 is shown.", "What a day."]) == [False, False]
    assert "The digit 7 is shown." in endpoint.asked(1)
    # In the picture's place stands one score, LLaVA-Hound's.
    endpoint.says = "Accurate, yet short.\nScore: 3.5"
    assert judge.rate(told, ["A ball."]) == [Rating(3.5, 3.5, 3.5)]
    assert "Score: N" in endpoint.asked()


def test_a_detector_grades_what_it_refuses_and_rewrites_it(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = EndpointJudge(endpoint.url, cache=tmp_path)
    says = {"true of the picture?": "no", "How wrong": "2, a moderate one", "write": "A red ball.\n"}
    endpoint.reply = lambda content: next(text for words, text in says.items() if words.lower() in content.lower())
    asked = Asked("What is here?", caption="A red ball.")
    assert judge.grade(asked, ["A blue ball.", "A cat."]) == [2, 2]
    assert judge.mend(asked, ["A blue ball.", "A cat."], [2, 2]) == "A red ball."
    assert "Wrong: A blue ball. A cat." in endpoint.asked()
    endpoint.reply = lambda content: "yes"
    assert judge.grade(asked, ["It is round."]) == [0]
    assert len(endpoint.seen) == 6, "what holds is not graded"


def test_a_reply_that_cannot_be_read_is_asked_for_again_and_not_for_good(endpoint: Endpoint, tmp_path: Path) -> None:
    """Three times in a run, each but the first drawn anew; then it is counted, and the next run may ask again."""
    judge, asked = EndpointJudge(endpoint.url, cache=tmp_path), Asked("What?")
    replies = iter([GOOD.replace("4", "10"), "It is fine.", GOOD])
    endpoint.reply = lambda content: next(replies)
    assert judge.rate(asked, ["x"]) == [Rating(4, 2.5, 5)]
    assert [body["temperature"] for _, _, body in endpoint.seen] == [0, 0.7, 0.7]
    assert judge.unread == 0
    endpoint.reply = lambda content: "yes and no" if "Bad" in content else "" if "Empty" in content else GOOD
    assert judge.rate(asked, ["Bad", "Good", "Empty"]) == [None, Rating(4, 2.5, 5), None]
    assert judge.unread == 2
    assert len(endpoint.seen) == 3 + 3 + 1 + 3
    endpoint.reply = lambda content: GOOD
    later = EndpointJudge(endpoint.url, cache=tmp_path)
    assert None not in later.rate(asked, ["Bad", "Good", "Empty"])
    assert (later.unread, len(endpoint.seen)) == (0, 12)


def test_what_an_endpoint_does_wrong_is_said(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = EndpointJudge(endpoint.url, cache=tmp_path)
    for says in (b"<html>", b'{"choices": []}'):
        endpoint.says = says
        with pytest.raises(ConfigError, match="did not answer as OpenAI's protocol has it"):
            judge.rate(Asked(f"{says!r}"), ["x"])
    with pytest.raises(ConfigError, match=r"cannot be asked .*is it running"):
        EndpointJudge("http://127.0.0.1:9/v1", cache=tmp_path).rate(Asked(""), ["x"])


def test_a_model_of_ours_judges_by_the_likelier_word_and_is_asked_once(run: Path, tmp_path: Path) -> None:
    """The probabilities that it keeps are those of each word after the prompt, made here one by one."""
    image = tmp_path / "a.png"
    picture(0).save(image)
    asked = Asked("Describe.", Ref("a.png", path=image))
    judge = judge_of(str(run), cache=tmp_path / "kept")
    assert isinstance(judge, ModelJudge)
    said = ["There is a red circle.", "What a day."]
    held = judge.holds(asked, said)
    engine, prompts = judge.engine, ["Is there a red circle in the picture?", judge.question(said[1])]
    kept = {row["prompt"]: row for row in map(read_json, (tmp_path / "kept").glob("*.json"))}
    assert set(kept) == set(prompts)
    for prompt, good in zip(prompts, held, strict=True):
        odds = {"no": 0.0, "yes": 0.0}
        for word in ("yes", "Yes", "no", "No"):
            turns = (Turn("user", (Media("image", Ref("a.png", path=image)), Text(prompt))),
                     Turn("assistant", (Text(word),)))  # fmt: skip
            batch = engine.processor.batch([Sample(Node(turns))])
            with torch.no_grad():
                logps = engine.model.target_logps(engine.model(batch), batch.targets)
            odds[word.lower()] += float(logps[:-1].sum().exp())
        verdict, *numbers = kept[prompt]["text"].replace("(", "").replace(")", "").split()
        assert [float(each) for each in numbers] == pytest.approx([odds["no"], odds["yes"]], abs=1e-4)
        assert verdict == ("yes" if good else "no") == max(odds, key=lambda name: odds[name])
        assert (kept[prompt]["judge"], kept[prompt]["picture"]) == (str(run.resolve()), "a.png")
    # What it said is kept: the next of its name does not run the model, one that was trained again does.
    again = judge_of(str(run), cache=tmp_path / "kept")
    assert isinstance(again, ModelJudge)
    again.engine = None  # type: ignore[assignment]
    assert again.holds(asked, said) == held
    again.identity += " trained again"
    with pytest.raises(AttributeError):
        again.holds(asked, said)


def test_a_model_of_ours_rates_grades_and_reads(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(str(run), cache=tmp_path)
    assert isinstance(judge, ModelJudge)
    seen: list[str] = []

    def odds(prompts: Sequence[str], *, asked: Asked, choices: Any) -> Iterator[str]:
        for prompt in prompts:
            seen.append(prompt)
            yield "3 (0 0 1)" if "1" in choices else "yes (0 1)" if "red" in prompt else "no (1 0)"

    monkeypatch.setattr(judge, "_odds", odds)
    asked = Asked("Describe.", caption="A red circle.")
    [rating, silent] = judge.rate(asked, ["There is a red circle. There is a blue star.", ""])
    # Behind a caption one score, the mean of both; behind a picture three aspects.
    assert rating == Rating(2.5, 2.5, 2.5)
    assert silent == Rating(1, 1, 1)
    assert seen == ["Is there a red circle in the picture?", "Is there a blue star in the picture?"]
    assert judge.grade(asked, ["There is a red circle.", "There is a blue star."]) == [0, 3]
    picture(0).save(tmp_path / "a.png")
    shown = Asked("Describe.", Ref("a.png", path=tmp_path / "a.png"))
    assert judge.rate(shown, ["There is a red circle. There is a blue star."]) == [Rating(2, 3)]
    with pytest.raises(ConfigError, match="neither a picture nor a caption came"):
        judge.holds(Asked("Describe."), ["The digit 7 is shown."])


def test_a_model_of_ours_reads_a_caption_where_no_picture_comes(run: Path, tmp_path: Path) -> None:
    """`data pairs proxy --judge RUN`: what the judge of LLaVA-Hound is given."""
    judge = judge_of(str(run), cache=tmp_path)
    [rating] = judge.rate(Asked("Describe.", caption="There is a red circle."), ["There is a red circle."])
    assert rating is not None
    assert rating.mean in (1, 3.5)
    [kept] = map(read_json, tmp_path.glob("*.json"))
    assert (kept["picture"], kept["caption"]) == (None, "There is a red circle.")


def test_align_asks_the_judge_that_is_named(
    endpoint: Endpoint, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`align rlhf_v --judge URL`: the endpoint refuses what is said and rewrites it; methods that ask none say so."""
    monkeypatch.setattr(Engine, "sampled", lambda self, samples, *, sampling: [["There is a cat."] for _ in samples])
    endpoint.reply = lambda content: (
        "no" if "true of the picture?" in content[1]["text"] else "1" if "How wrong" in content[1]["text"] else "A dog."
    )
    command = [
        "align",
        "--from",
        str(run),
        "--no-measure",
        "--judge",
        endpoint.url,
        "--scenes",
        str(run.parent / "scenes"),
    ]
    out = tmp_path / "out"
    found = CliRunner().invoke(app, [*command, "rlhf_v", "--out", str(out)])
    assert found.exit_code == 0, found.output
    row = json.loads((out / "pairs" / "ddpo.jsonl").read_text().splitlines()[0])
    assert (row["chosen"], row["rejected"]) == ("A dog.", "There is a cat.")
    assert json.loads((out / "recipe.json").read_text())["judge"] == f"{endpoint.url} (judge)"
    found = CliRunner().invoke(app, [*command, "dpo", "--out", str(tmp_path / "other")])
    assert found.exit_code == 1
    assert "no stage makes such: truth" in found.stderr
    assert not (tmp_path / "other").exists()


def test_mmhal_is_rated_by_whoever_is_named(endpoint: Endpoint, run: Path, tmp_path: Path) -> None:
    """`eval --judge`: of the scale and of what is in the picture it is told in words; no rating counts as 0, and so."""
    data = write(tmp_path / "mmhal.json", [question("attribute"), question("counting")])
    for row in json.loads(data.read_text()):
        picture(0).save(tmp_path / Path(row["image_src"]).name, format="PNG")
    command = ["eval", str(run), "--tasks", "mmhal", "--data", str(data), "--json", "--judge"]
    endpoint.says = "It is yellow, as said. Rating: 4"
    found = CliRunner().invoke(app, [*command, endpoint.url])
    assert found.exit_code == 0, found.output
    held = json.loads(found.stdout)["mmhal"]
    assert held["score"] == 4
    assert held["measures"] | {"words": 0} == {"hallucination_rate": 0.0, "unrated": 0.0, "words": 0}
    assert isinstance(endpoint.asked(0), str), "words alone"
    for words in ("Fire hydrant, Tree", "What is attribute?", "It is yellow.", "Rating: N"):
        assert words in endpoint.asked(0)
    # A tiny model rates nothing.
    found = CliRunner().invoke(app, [*command, str(run)])
    assert found.exit_code == 0, found.output
    held = json.loads(found.stdout)["mmhal"]
    assert (held["score"], held["measures"]["unrated"], held["measures"]["hallucination_rate"]) == (0, 1, 1)
    with pytest.raises(ConfigError, match=r"known of Scenes alone, ask scenes\.mmhal"):
        rater_of("truth", cache=tmp_path)
    with pytest.raises(ConfigError, match="no judge 'truht'"):
        rater_of("truht", cache=tmp_path)
    found = CliRunner().invoke(app, ["eval", str(run), "--tasks", "vqa", "--data", str(data), "--judge", str(run)])
    assert found.exit_code == 2
    assert "none is rated by a judge" in found.stderr


def test_a_rating_is_the_one_that_is_written() -> None:
    assert Asking("me", lambda prompt: "Rating: 2")("Q", "A", ["Cat"], "x") == 2
    assert Asking("me", lambda prompt: "Two.")("Q", "A", [], "x") is None
