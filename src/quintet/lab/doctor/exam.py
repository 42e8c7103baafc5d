"""One stage, every contract: its data, its rows as text, then the small model that runs them."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from quintet.data.processor import Processor
from quintet.data.tokenizer import Tokenizer
from quintet.errors import AlignmentError, DataError, QuintetError
from quintet.lab.doctor import rows, spelling
from quintet.lab.doctor.bench import build, hidden, row
from quintet.lab.doctor.chart import Chart, unreadable
from quintet.lab.doctor.columns import columns, columns_on_meta
from quintet.lab.doctor.findings import CONTRACTS, Finding, Rendered
from quintet.lab.doctor.gradients import gradients
from quintet.lab.doctor.patient import Case, Reading, choose, read_rows
from quintet.lab.doctor.show import segments
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.training.objectives import CONTRASTIVE
from quintet.training.stage import Stage
from quintet.values import Sample, Tokens

__all__ = ["Exam"]

CHATS = 200
"""Rows that are replayed as a chat: every answer in them is spelt again."""
ROW = 4
"""Samples of the row that the shift is proved on."""

AFTER_DATA = tuple(c for c in CONTRACTS if c != "data")
_NO_ROWS = "there are no rows"
MODEL = ("shift", "packing", "media", "gradients")


class Exam:
    """Examines `stage` of `recipe` (at its scale) on a model of the same structure, `small`.

    `name` is what the diagnosis calls it: the stage's, or another for rows mixed into it. Gradients are the whole
    stage's: what its own rows do not reach others may, so its own are examined last, with those that ran before.
    """

    def __init__(
        self, chart: Chart, stage: Stage, recipe: Recipe, small: MLLM.Config, tokenizer: Tokenizer, name: str
    ) -> None:
        self.chart, self.stage, self.recipe, self.small, self.tokenizer = chart, stage, recipe, small, tokenizer
        self.name = name

    def run(self, path: Path, others: Sequence[Case] = ()) -> list[Case]:
        """Every contract, in order; what cannot be examined is noted as skipped. The cases that the model ran."""
        chart = self.chart
        source, report = chart.check(path, self.name)
        if source is None:
            chart.skip(self.name, _NO_ROWS, *AFTER_DATA)
            return []
        reading = read_rows(
            self.stage,
            source,
            self.tokenizer,
            self.recipe.model,
            limit=chart.limit,
            unreadable=unreadable(report),
            progress=chart.progress,
        )
        chart.sources.append(reading.count)
        found = [f for f in reading.findings if f.contract == "dropped"]
        if not reading.good and "does-not-fit" not in reading.dropped:  # which says why
            found.append(self._nothing(reading))
        note = f"{reading.count.kept:,} of {reading.read:,} rows kept"
        chart.judge("dropped", self.name, found, note=note, broken=bool(reading.dropped))
        whole = self._text(reading)
        if not reading.good:
            # A recipe that spells no row at all has said why.
            misfits = [f for f in reading.findings if f.contract == "columns"]
            chart.judge("columns", self.name, misfits) if misfits else chart.skip(self.name, _NO_ROWS, "columns")
            chart.skip(self.name, _NO_ROWS, *MODEL)
        elif not whole:
            chart.skip(self.name, "samples are cut, so no model can run them", "columns", *MODEL)
        else:
            return self._model(reading, others)
        return []

    def _nothing(self, reading: Reading) -> Finding:
        return Finding(
            contract="dropped",
            fault="no-rows",
            found=f"no row to learn from among {reading.read:,}",
            expected="at least one",
            do="see the faults of the rows",
            file=reading.source.name,
        )

    # ---- text ----------------------------------------------------------------------------------------------------
    def _text(self, reading: Reading) -> bool:
        """The contracts of text; false if media are missing from the tokens."""
        chart, processor = self.chart, reading.processor
        cut = [f for f in reading.findings if f.contract == "length"]
        wrong: list[Finding] = list(self._markers())
        said: list[Finding] = []
        shown = set(choose(reading, chart.samples))
        every = max(1, len(reading.good) // CHATS)
        chats = 0
        for n, (index, sample, tokens) in enumerate(reading.samples()):
            chart.progress(f"{self.name}: what is learnt", n, len(reading.good))
            if index in shown:
                chart.rendered.append(self._rendered(sample, tokens))
            # One fault, one line: a sample that is cut has no whole answers, and one with wrong answers no replay.
            if missing := list(spelling.length(sample, tokens, processor)):
                cut += missing
            elif false := list(spelling.answers(sample, tokens, processor)):
                wrong += false
            elif self._chatted and n % every == 0:
                chats += 1
                said += spelling.chat(sample, tokens, processor)
        if self._chatted and reading.good:
            said += self._saved(reading, sorted(shown))
        if cut or reading.good:
            chart.judge("length", self.name, cut, note=f"{reading.read:,} rows, at most {self.stage.row:,} tokens each")
        else:
            chart.skip(self.name, _NO_ROWS, "length")
        if wrong or reading.good:
            chart.judge("answers", self.name, wrong, note=f"{len(reading.good):,} rows")
        else:
            chart.skip(self.name, _NO_ROWS, "answers")
        if not self._chatted:
            chart.skip(self.name, f"chat speaks as stage {self.recipe.stages[-1].name} does", "chat")
        elif chats or said:
            chart.judge("chat", self.name, said, note=f"{chats:,} rows replayed")
        else:
            chart.skip(self.name, "no row whose answers are learnt rightly", "chat")
        return not any(f.fault in ("media-cut", "media-lost") for f in cut)

    @property
    def _chatted(self) -> bool:
        """Whether the finished model is talked to in this stage's template."""
        return self.stage.name == self.recipe.stages[-1].name

    def _markers(self) -> Iterable[Finding]:
        for marker in self.stage.template.special_tokens:
            if marker not in self.tokenizer.specials:
                yield Finding(
                    contract="answers",
                    fault="missing-special",
                    found=f"the template's marker {marker!r} spelt letter by letter by this tokenizer",
                    expected="one control token",
                    do="choose a marker that the tokenizer has, or name it in `Template.added`",
                )

    def _saved(self, reading: Reading, shown: list[int]) -> Iterable[Finding]:
        """Chat reads the processor from the model's folder: it must spell as the one that trained."""
        processor = reading.processor
        with tempfile.TemporaryDirectory() as folder:
            try:
                processor.save(Path(folder))
                loaded = Processor.load(Path(folder), processor.model)
            except QuintetError as error:
                found = f"a processor that cannot be saved and loaded: {error}"
                yield Finding(contract="chat", fault="processor-differs", found=found, do="chat could not open the run")
                return
        for index in shown:
            sample = reading.source.sample(index)
            if processor.tokens(sample).ids.tolist() != loaded.tokens(sample).ids.tolist():
                yield Finding(
                    contract="chat",
                    fault="processor-differs",
                    found="other tokens from the saved processor",
                    expected="those of training",
                    do="the tokenizer or the template does not survive saving",
                    file=sample.origin.file,
                    row=sample.origin.row,
                )
                return

    def _rendered(self, sample: Sample, tokens: Tokens) -> Rendered:
        return Rendered(
            stage=self.name,
            file=sample.origin.file,
            row=sample.origin.row,
            tokens=len(tokens),
            learnt=int((tokens.weight != 0).sum()),
            segments=segments(tokens, self.tokenizer, self.recipe.model),
        )

    # ---- the model -----------------------------------------------------------------------------------------------
    def _model(self, reading: Reading, others: Sequence[Case]) -> list[Case]:
        chart, stage, pad = self.chart, self.stage, self.tokenizer.pad_id
        chart.progress(f"{self.name}: running the model", 0, 1)
        specials = self.tokenizer.specials  # one that lacks a token was found to
        added = [specials[token] for token in self.recipe.added_tokens if token in specials]
        model = build(self.small, vocab=self.tokenizer.vocab, added=added)
        notes: list[str] = []
        least = 2 if stage.objective in CONTRASTIVE else 1
        cases = reading.cases(choose(reading, max(chart.samples, least)), self.small)

        def fit() -> Iterable[Finding]:
            found, note = columns(model, reading.sizes)
            notes.append(note)
            if self.small != self.recipe.model:
                found += columns_on_meta(self.recipe.model, reading.sizes)
            if not found:
                hidden(model, row(cases, pad=pad))  # the fusion refuses counts that disagree with the text's
            return found

        misfits = [f for f in reading.findings if f.contract == "columns"] + self._guarded("columns", fit)
        if not chart.judge("columns", self.name, misfits, note="".join(notes)):
            chart.skip(self.name, "columns are broken", *MODEL)
            return []
        self._prove("shift", lambda: rows.shift(model, stage, cases[:ROW], pad=pad), f"{len(cases[:ROW])} samples")
        if stage.packing:
            self._prove("packing", lambda: rows.packing(model, cases, pad=pad), "3 samples in a row")
        else:
            chart.skip(self.name, "this stage does not pack", "packing")
        with_media = [case for case in cases if case.media]
        if with_media:
            self._prove("media", lambda: rows.media(model, with_media, pad=pad), f"{len(with_media)} samples")
        else:
            chart.skip(self.name, "no media in these rows", "media")
        met = [*cases, *others]
        if self.name != stage.name:
            chart.skip(self.name, f"judged with {stage.name}'s own rows", "gradients")
        elif len(met) < least:
            chart.skip(self.name, f"{stage.objective!r} tells rows from each other, and there is one", "gradients")
        else:  # last, because it leaves adapters and gradients behind
            self._prove("gradients", lambda: gradients(model, stage, met, pad=pad), f"{len(met)} samples")
        chart.progress(f"{self.name}: running the model", 1, 1)
        return cases

    def _prove(self, contract: str, examine: Callable[[], Iterable[Finding]], note: str) -> None:
        self.chart.judge(contract, self.name, self._guarded(contract, examine), note=note)

    def _guarded(self, contract: str, examine: Callable[[], Iterable[Finding]]) -> list[Finding]:
        """The findings; what our own code refuses while it is examined is one of them."""
        try:
            return list(examine())
        except QuintetError as error:
            if isinstance(error, AlignmentError):
                expected = "as many features as columns, item by item"
                do = "the fusion's `columns` must say what it writes"
                return [Finding(contract=contract, fault="column-count", found=str(error), expected=expected, do=do)]
            fault = error.fault if isinstance(error, DataError) else "does-not-run"
            return [Finding(contract=contract, fault=fault, found=str(error))]
