"""Judges: an endpoint on this machine that speaks OpenAI's protocol, and models of ours. About 10 s."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from source_rows import write
from test_eval_hallucination_files import question
from typer.testing import CliRunner

from conftest import picture
from quintet.cli.app import app
from quintet.data.scenes import World, make_scenes
from quintet.data.scenes.claims import Claim
from quintet.errors import ConfigError, DataError
from quintet.evaluation.endpoint import EndpointJudge
from quintet.evaluation.judge import Asked
from quintet.evaluation.metrics.rated import Asking
from quintet.lab.judges import ModelJudge, judge_of, rater_of
from quintet.lab.run import Job, train
from quintet.values import Ref

GOOD = "helpfulness: 4, visual faithfulness: 2.5\nEthical considerations: 5"


class Endpoint:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.says: str | bytes = GOOD
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.seen.append((self.path, dict(self.headers), body))
                says = endpoint.says
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenes = make_scenes(tmp_path_factory.mktemp("judges") / "scenes", 24, 0, World())
    train(Job(recipe="llava15", scale="tiny", out=scenes.parent / "run", scenes=scenes))
    return scenes.parent / "run"


def test_an_endpoint_is_asked_once_and_what_it_said_is_kept(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    image = tmp_path / "a.png"
    picture(0).save(image)
    asked = Asked("What is here?", Ref("a.png", path=image))
    judge = EndpointJudge(endpoint.url + "/", cache=tmp_path / "kept", model="gpt")
    [rating] = judge.rate(asked, ["A cat."])
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


def test_a_caption_stands_for_the_picture_and_claims_are_asked_one_by_one(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = EndpointJudge(endpoint.url, cache=tmp_path)
    endpoint.says = "Yes, it is."
    assert judge.holds(Asked("", caption="A red ball."), [Claim("object", "red circle")]) == [True]
    assert endpoint.asked().startswith("The picture, in words: A red ball.\n")
    endpoint.says = "No."
    assert judge.holds(Asked(""), [Claim("digit", "7"), Claim("word", "lamp")]) == [False, False]
    assert "The digit 7 is shown." in endpoint.asked(1)


def test_what_an_endpoint_does_wrong_is_said(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = EndpointJudge(endpoint.url, cache=tmp_path)
    for says, error, words in (
        ("helpfulness: 9", DataError, "expected a number from 1 to 5"),
        (b"<html>", ConfigError, "did not answer as OpenAI's protocol has it"),
        (b'{"choices": []}', ConfigError, "did not answer as OpenAI's protocol has it"),
    ):
        endpoint.says = says
        with pytest.raises(error, match=words):
            judge.rate(Asked(f"{says!r}"), ["x"])
    with pytest.raises(ConfigError, match=r"cannot be asked .*is it running"):
        EndpointJudge("http://127.0.0.1:9/v1", cache=tmp_path).rate(Asked(""), ["x"])


def test_a_model_of_ours_judges_by_yes_and_no(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(str(run))
    assert isinstance(judge, ModelJudge)
    image = tmp_path / "a.png"
    picture(0).save(image)
    seen: list[str] = []

    def answer(samples: Any, **_: object) -> list[str]:
        seen.extend(sample.root.turns[0].parts[1].text for sample in samples)
        return ["Yes." if "red" in each else "no" for each in seen[-len(samples) :]]

    monkeypatch.setattr(judge.engine, "answer", answer)
    asked = Asked("Describe.", Ref("a.png", path=image))
    [rating, silent] = judge.rate(asked, ["There is a red circle. There is a blue star.", "Nothing."])
    assert (rating.helpfulness, rating.faithfulness) == (2, 3)
    assert (silent.helpfulness, silent.faithfulness) == (1, 1)
    assert seen == ["Is there a red circle in the picture?", "Is there a blue star in the picture?"]
    with pytest.raises(ConfigError, match="no picture came"):
        judge.holds(Asked("Describe."), [Claim("digit", "7")])


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
        rater_of("truth")
    with pytest.raises(ConfigError, match="no judge 'truht'"):
        rater_of("truht")
    found = CliRunner().invoke(app, ["eval", str(run), "--tasks", "vqa", "--data", str(data), "--judge", str(run)])
    assert found.exit_code == 2
    assert "none is rated by a judge" in found.stderr


def test_a_rating_is_the_one_that_is_written() -> None:
    assert Asking("me", lambda prompt: "Rating: 2")("Q", "A", ["Cat"], "x") == 2
    assert Asking("me", lambda prompt: "Two.")("Q", "A", [], "x") is None
