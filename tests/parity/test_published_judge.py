"""A folder of transformers judges: it is asked in its own template, and says what its class says. About 10 s."""

import json
from pathlib import Path
from typing import Any

import llava_fixtures
import pytest
import test_spoken
import torch
from typer.testing import CliRunner

from conftest import picture, published_tokenizer
from quintet.cli.app import app
from quintet.data.scenes import World, make_scenes
from quintet.errors import ConfigError, DataError
from quintet.evaluation.judge import Asked
from quintet.evaluation.published import PublishedJudge
from quintet.lab.judges import judge_of, rater_of
from quintet.lab.pairs import Work, build
from quintet.model.checkpoint import read_json
from quintet.values import Ref

SEES = (
    "{% for m in messages %}USER: {% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %} ASSISTANT:{% endfor %}"
)
READS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [me] {% endfor %}"
LLM: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights end where they like: replies are short."""
    monkeypatch.setattr("quintet.evaluation.published.WRITTEN", 8)


def llava(folder: Path) -> Path:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = published_tokenizer("<image>", bos="<s>")
    square = {"height": 32, "width": 32}
    pictures = CLIPImageProcessorPil(size=square, crop_size=square)
    processor: Any = LlavaProcessor(
        pictures, words, patch_size=8, vision_feature_select_strategy="default", chat_template=SEES,
        num_additional_image_tokens=1,
    )  # fmt: skip
    model = llava_fixtures.published(vocab=len(words))
    model.config.image_token_index = words.convert_tokens_to_ids("<image>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def words_alone(folder: Path, kind: str) -> Path:
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    words = published_tokenizer(front="<s>" if kind == "llama" else "", bos="<s>")
    words.chat_template = READS if kind == "llama" else None
    torch.manual_seed(0)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **LLM))
    elif kind == "bart":
        sizes = {f"{side}_{name}": size for side in ("encoder", "decoder")
                 for name, size in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
        model = BartForConditionalGeneration(
            BartConfig(vocab_size=len(words), d_model=32, decoder_start_token_id=50, forced_eos_token_id=None, **sizes)
        )
    else:
        config: Any = T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
        config.decoder_start_token_id = 50  # a letter: from a special token random weights never come away
        model = T5ForConditionalGeneration(config)
    llava_fixtures.shaken(model).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def published(folder: Path, tmp_path: Path) -> PublishedJudge:
    judge = judge_of(str(folder), cache=tmp_path / "kept")
    assert isinstance(judge, PublishedJudge)
    return judge


def shown(folder: Path, number: int, *, side: int = 32) -> Asked:
    picture(number, height=side, width=side).save(folder / f"{number}.png")
    return Asked("Describe.", Ref(f"{number}.png", path=folder / f"{number}.png"))


def test_a_model_that_sees_is_shown_the_picture_where_its_template_has_it(tmp_path: Path) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = llava(tmp_path / "llava")
    judge = published(folder, tmp_path)
    reference: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    said = []
    for number in range(3):
        asked = shown(tmp_path, number)
        text = "USER: <image>\nIs it red? ASSISTANT:"
        inputs = processor(images=picture(number, height=32, width=32), text=text, return_tensors="pt")
        ids = reference.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        said += judge.say(["Is it red?"], asked, again=0)
        assert said[-1] == processor.decode(ids, skip_special_tokens=True).strip()
    assert len(set(said)) > 1, "what is seen is judged"
    # One that is repeated is drawn, the same way every time, whatever the folder draws by.
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_k": 1, "num_return_sequences": 2}')
    for each in (judge, published(folder, tmp_path)):
        asked = shown(tmp_path, 0)
        assert list(each.say(["Is it red?"], asked, again=0)) == said[:1]
        once, twice = ([*each.say(["Is it red?"], asked, again=n)] for n in (1, 2))
        assert once == list(each.say(["Is it red?"], asked, again=1))
        assert len({*said[:1], *once, *twice}) == 3
    # A template of its own makes it another judge, for which nothing is kept.
    assert judge.identity != published(folder, tmp_path).identity


@pytest.mark.parametrize("name", ["blip2", "blip2 t5", "instructblip"])
def test_without_a_template_the_processor_places_the_picture(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    spoken = test_spoken.MADE[name](tmp_path / "theirs")
    side = spoken.inputs.pixel_values.shape[-1]
    judge = published(spoken.folder, tmp_path)
    reference: Any = AutoModelForImageTextToText.from_pretrained(spoken.folder)
    processor: Any = AutoProcessor.from_pretrained(spoken.folder)
    prompt = {"blip2": "Question: What is it? Answer:", "blip2 t5": "Question: What is it? Short answer:"}.get(
        name, "What is it?"
    )
    made = reference.generate(**spoken.inputs, max_new_tokens=8, do_sample=False)[0]
    start = 0 if name == "blip2 t5" else spoken.inputs.input_ids.shape[1]
    said = list(judge.say([prompt], shown(tmp_path, 1, side=side), again=0))
    assert said == [processor.decode(made[start:], skip_special_tokens=True).strip()]
    assert said != [""]


def test_a_template_is_found_where_the_tokenizer_has_it_and_refused_where_it_takes_no_parts(tmp_path: Path) -> None:
    folder = llava(tmp_path / "llava")
    template = folder / "chat_template.jinja"
    template.rename(tmp_path / "moved")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": SEES}))
    asked = shown(tmp_path, 1)
    moved = [*published(folder, tmp_path).say(["Is it red?"], asked, again=0)]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "moved").rename(template)
    assert moved == [*published(folder, tmp_path).say(["Is it red?"], asked, again=0)]
    template.write_text("{% for m in messages %}USER: {{ m['content'] }} ASSISTANT:{% endfor %}")
    with pytest.raises(ConfigError, match="takes text alone, and is to place a picture"):
        list(published(folder, tmp_path).say(["Is it red?"], asked, again=0))
    judge = published(folder, tmp_path)
    inputs = judge._inputs("Is it red?", [])
    assert judge.processor.tokenizer.decode(inputs["input_ids"][0]) == "USER: Is it red? ASSISTANT:"
    template.write_text("{{ raise_exception('never') }}")
    with pytest.raises(ConfigError, match=r"cannot be asked \(TemplateError: never\)"):
        list(published(folder, tmp_path).say(["Is it red?"], asked, again=0))


def test_what_it_cannot_do_is_not_blamed_on_its_template(tmp_path: Path) -> None:
    folder = llava(tmp_path / "llava")
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a picture"):
        list(published(folder, tmp_path).say(["x"], Asked("", Ref("1.png", path=tmp_path / "1.png")), again=0))
    spoken = test_spoken.MADE["blip2"](tmp_path / "theirs")
    with pytest.raises(ConfigError, match="it may read no prompt without a picture"):
        list(published(spoken.folder, tmp_path).say(["x"], Asked("", caption="A red ball."), again=0))


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_a_model_of_words_alone_reads_what_stands_for_the_picture(kind: str, tmp_path: Path) -> None:
    """With one beginning, not two: the template writes it, so the tokenizer does not."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    folder = words_alone(tmp_path / "words", kind)
    judge = published(folder, tmp_path)
    asked = Asked("Describe.", caption="A red ball.")
    text = "What is shown, in words: A red ball.\nIs it red?"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "llama":
        text = f"<s>[user] {text} [me] "
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"][0].tolist().count(tokenizer.bos_token_id) == (kind == "llama")
    loads: Any = AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM
    ids = loads.from_pretrained(folder).eval().generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=8, do_sample=False
    )[0]  # fmt: skip
    ids = ids[inputs["input_ids"].shape[1] :] if kind == "llama" else ids
    said = list(judge.say(["Is it red?"], asked, again=0))
    assert said == [tokenizer.decode(ids, skip_special_tokens=True).strip()]
    assert said != [""]
    with pytest.raises(ConfigError, match="reads words alone, and is to see a picture; `proxy` lets it read"):
        list(judge.say(["Is it red?"], shown(tmp_path, 1), again=0))


def test_what_it_said_is_kept_until_its_weights_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = words_alone(tmp_path / "words", "llama")
    asked = Asked("Describe.", caption="A red ball.")
    calls: list[str] = []

    def written(self: PublishedJudge, inputs: Any, *, seed: int) -> str:
        calls.append(self.name)
        return "Yes, it is."

    monkeypatch.setattr(PublishedJudge, "_written", written)
    for _ in range(2):
        assert judge_of(str(folder), cache=tmp_path / "kept").holds(asked, ["It is red."]) == [True]
    assert len(calls) == 1
    [kept] = map(read_json, (tmp_path / "kept").glob("*.json"))
    assert (kept["judge"], kept["caption"], kept["text"]) == (str(folder.resolve()), "A red ball.", "Yes, it is.")
    words_alone(folder, "t5")
    assert judge_of(str(folder), cache=tmp_path / "kept").holds(asked, ["It is red."]) == [True]
    assert len(calls) == 2
    assert rater_of(str(folder), cache=tmp_path / "kept").name == str(folder.resolve())


def test_pairs_are_judged_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of `data pairs proxy --judge FOLDER`, to the rows: it scores what it reads, and the file is made."""
    scenes = make_scenes(tmp_path / "scenes", 12, 0, World())
    folder = words_alone(tmp_path / "words", "llama")
    monkeypatch.setattr(
        PublishedJudge, "_written", lambda self, inputs, *, seed: f"Score: {3 + 2 * (inputs['input_ids'].shape[1] % 2)}"
    )

    class Talks:
        specials = ()

        def sampled(self, samples: Any, *, sampling: Any) -> list[list[str]]:
            return [["A ball.", "A balls.", "A", "B", "C", "D"] for _ in samples]

    judge = judge_of(str(folder), cache=tmp_path / "kept")
    work = Work(scenes=scenes, rows=4, model=lambda: Talks(), judge=judge)  # type: ignore[arg-type, return-value]
    assert build("proxy", work, tmp_path / "pairs.jsonl") > 0
    for row in map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines()):
        assert (row["chosen_score"], row["rejected_score"]) == (5, 3)


def test_what_cannot_judge_is_refused_with_its_reason(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     image_size=16, patch_size=8)).save_pretrained(tmp_path / "tower")  # fmt: skip
    with pytest.raises(ConfigError, match="is a clip_vision_model, which writes no text"):
        judge_of(str(tmp_path / "tower"), cache=tmp_path)
    # What a file lacks would be random, and judge.
    from safetensors.torch import load_file, save_file

    folder = words_alone(tmp_path / "lacking", "llama")
    weights = load_file(folder / "model.safetensors")
    held = {name: tensor for name, tensor in weights.items() if "mlp" not in name}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights, which would be random: model\.layers\.0\.mlp"):
        judge_of(str(folder), cache=tmp_path)
    # Weights as a pickle are not read, code of a folder is not run.
    folder = words_alone(tmp_path / "pickled", "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="transformers cannot load the judge"):
        judge_of(str(folder), cache=tmp_path)
    folder = words_alone(tmp_path / "remote", "llama")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ConfigError, match="transformers cannot load the judge"):
        judge_of(str(folder), cache=tmp_path)


def test_a_picture_that_its_processor_cannot_place_is_an_error_and_not_a_guess(tmp_path: Path) -> None:
    folder = llava(tmp_path / "llava")
    (folder / "chat_template.jinja").unlink()
    judge = published(folder, tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be asked .*what its chat template says \(chat_template\.jinja\)"):
        list(judge.say(["Is it red?"], shown(tmp_path, 1), again=0))


def test_the_command_takes_such_a_folder(tmp_path: Path) -> None:
    """And says what it is not, before it asks a model anything."""
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text('{"model_type": "llava"}')
    make_scenes(tmp_path / "scenes", 12, 0, World())
    command = ["data", "pairs", "claims", "--out", str(tmp_path / "x.jsonl"), "--scenes", str(tmp_path / "scenes")]
    found = CliRunner().invoke(app, [*command, "--judge", str(tmp_path / "judge")])
    assert found.exit_code == 1
    assert "transformers cannot load the judge" in found.stderr
