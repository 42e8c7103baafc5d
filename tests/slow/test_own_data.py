"""Pictures that we did not render: photographs and handwritten digits in a LLaVA file, learnt, and asked for again.

The function under test is the one behind `quintet train llava15 --scale starter --data my.json`. All photographs are
asked about with the same words, so only the picture tells one answer from the other. About 30 s where the processor has
bfloat16 products, twice that where not.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_digits

from quintet.data.scenes import World, make_scenes
from quintet.lab.run import Job, train
from quintet.serving.engine import Engine
from quintet.training.folder import Metrics
from quintet.values import Media, Node, Ref, Sample, Text, Turn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PHOTOGRAPHS = {
    "astronaut": "an astronaut in an orange suit",
    "coffee": "a cup of coffee",
    "cat": "a cat",
    "rocket": "a rocket at night",
    "horse": "the shape of a horse",
    "coins": "old coins",
    "moon": "the moon",
    "colorwheel": "a wheel of colours",
}
LOOK = "What is in this picture?"
READ = "Which digit is written here?"


def my_data(folder: Path) -> Path:
    """my.json and its pictures: JPEG photographs of several sizes and modes, and one PNG of each of six digits."""
    rows = []
    (folder / "pictures").mkdir(parents=True)
    for name, what in PHOTOGRAPHS.items():
        pixels = getattr(photographs, name)()
        image = Image.fromarray(pixels if pixels.dtype != bool else (pixels * 255).astype(np.uint8))
        image.thumbnail((300, 300))
        file = f"pictures/{name}.png" if image.mode == "RGBA" else f"pictures/{name}.jpg"
        image.save(folder / file)
        rows.append((file, LOOK, what))
    digits = load_digits()
    for digit in range(6):
        pixels = digits.images[list(digits.target).index(digit)]
        image = Image.fromarray((pixels * 15).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(folder / "pictures" / f"{digit}.png")
        rows.append((f"pictures/{digit}.png", READ, str(digit)))
    path = folder / "my.json"
    path.write_text(
        json.dumps(
            [
                {
                    "id": file,
                    "image": file,
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{question}"},
                        {"from": "gpt", "value": answer},
                    ],
                }
                for file, question, answer in rows
            ]
        )
    )
    return path


def questions(path: Path) -> list[tuple[Sample, str]]:
    asked = []
    for row in json.loads(path.read_text()):
        human, gpt = (turn["value"] for turn in row["conversations"])
        picture = Media("image", Ref(row["image"], path=path.parent / row["image"]))
        asked.append((Sample(Node((Turn("user", (picture, Text(human.removeprefix("<image>\n")))),))), gpt))
    return asked


def test_a_file_of_ones_own_pictures_is_learnt_and_answered(tmp_path: Path) -> None:
    mine = my_data(tmp_path / "mine")
    make_scenes(tmp_path / "scenes", 60, 0, World())
    job = Job(
        recipe="llava15",
        scale="starter",
        out=tmp_path / "run",
        data={"": mine},
        scenes=tmp_path / "scenes",
        sets=["stages.pretrain.steps=20", "stages.instruct.batch=14", "stages.instruct.steps=400"],
    )
    results = train(job)
    assert results["instruct"].dropped == {}
    engine = Engine.open(tmp_path / "run")
    asked = questions(mine)
    answers = engine.answer([sample for sample, _ in asked], max_tokens=24)
    wrong = {truth: answer for answer, (_, truth) in zip(answers, asked, strict=True) if answer != truth}
    assert not wrong, f"{wrong} after a last loss of {Metrics.read(tmp_path / 'run' / 'metrics.jsonl')[-1]['loss']:.3f}"
