"""From a recipe or a file to a diagnosis."""

from pathlib import Path

from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError
from quintet.lab.doctor.chart import Chart, unreadable
from quintet.lab.doctor.diagnosis import Diagnosis
from quintet.lab.doctor.exam import Exam
from quintet.lab.doctor.findings import Progress, Rendered, SourceCount
from quintet.lab.doctor.patient import Case
from quintet.lab.doctor.show import plain_segments
from quintet.lab.pretrained import load_tokenizer, stage_tokenizer
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.lab.run import scenes_folder, scenes_rows
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.stage import Stage

__all__ = ["diagnose"]

LIMIT = 5000
"""Rows of a source that are read; `quintet data check` reads all."""
SCENES = 64
"""Pictures of Scenes for stages without a file."""


def diagnose(
    target: str | Path | Recipe,
    *,
    scale: str = "starter",
    data: Path | None = None,
    samples: int = 8,
    limit: int = LIMIT,
    tokenizer: Tokenizer | None = None,
    scenes: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Diagnosis:
    """Examines a recipe (by name, by path, or itself), or a data file.

    `data` is what the recipe's last stage learns from; other stages, and the last without it, learn from Scenes. At
    most `limit` rows of a source are read; `samples` of them are shown and run. Text, rows and counts of columns are
    those of `scale`; the model that runs has random weights and is never larger than the starter's. `tokenizer` is by
    default that of the scale, `scenes` by default a small set in the cache.

    Raises:
        ConfigError: no such recipe or scale, or a number below 1.
        CheckpointError: the scale's tokenizer is not on this machine.
    """
    if samples < 1 or limit < 1:
        raise ConfigError(f"samples is {samples} and limit is {limit}; both count rows and must be at least 1")
    if not isinstance(target, Recipe) and _is_data(str(target)):
        if data is not None:
            raise ConfigError(f"{target} is a data file already; name a recipe to examine it with {data}")
        return _file_alone(Path(target), Chart(str(target), "", samples, limit, progress))
    name, recipe = ("recipe", target) if isinstance(target, Recipe) else load_recipe(str(target))
    scaled = at_scale(recipe, scale)
    small = at_scale(recipe, "tiny").model if scale == "full" else scaled.model
    given, tokenizer = tokenizer, tokenizer or load_tokenizer(scaled.model, added=recipe.added_tokens)
    chart = Chart(name, scale, samples, limit, progress)
    for stage in scaled.stages:
        own = data if stage is scaled.stages[-1] else None
        spelt = given or stage_tokenizer(scaled.model, stage, tokenizer)
        cases: list[Case] = []
        for name, path in ({stage.name: own} if own else _scenes(scenes, stage)).items():
            cases += Exam(chart, stage, scaled, small, spelt, name).run(path, cases)
    return chart.diagnosis()


def _is_data(target: str) -> bool:
    return not target.endswith(".py") and target not in recipe_names() and Path(target).exists()


def _scenes(folder: Path | None, stage: Stage) -> dict[str, Path]:
    """What to call them → its rows of Scenes, each kind apart, its own last."""
    names = {kind: f"{stage.name}: {kind}" for kind in stage.data.mixed} | {stage.data.kind: stage.name}
    return {name: scenes_rows(folder or scenes_folder(SCENES), kind) for kind, name in names.items()}


def _file_alone(path: Path, chart: Chart) -> Diagnosis:
    """A file without a recipe: its faults, what would be dropped, and samples as they stand."""
    source, report = chart.check(path, "")
    if source is None:
        return chart.diagnosis()
    lost = unreadable(report)
    dropped: dict[str, int] = {}
    for index in range(report.rows):
        reading = source.read(index)
        fault = reading.faults[0].fault if reading.faults else lost.get((reading.origin.file, reading.origin.row))
        if fault:
            dropped[fault] = dropped.get(fault, 0) + 1
        elif len(chart.rendered) < chart.samples:
            sample = source.sample(index)
            shown = plain_segments(sample)
            here = sample.origin
            chart.rendered.append(Rendered(stage="", file=here.file, row=here.row, tokens=0, learnt=0, segments=shown))
    count = SourceCount(stage="", name=source.name, rows=len(source), read=report.rows, dropped=dropped)
    chart.sources.append(count)
    chart.judge("dropped", "", (), note=f"{count.kept:,} of {count.read:,} rows kept", broken=bool(dropped))
    return chart.diagnosis()
