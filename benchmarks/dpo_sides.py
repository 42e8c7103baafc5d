"""The two sides of `dpo.py` as they are set up: our stage with its reference, and TRL's trainer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_llava import PATCH
from tiny_pairs import ALPHA, BETA, LINEAR, RANK, RATE, Pairs, TrainName, make_stage
from turns import Conditions

__all__ = ["Case", "kept", "peft_name", "trainer"]


@dataclass(frozen=True, kw_only=True)
class Case(Conditions):
    """What is compared."""

    tokens: int
    train: TrainName

    @property
    def pairs(self) -> Pairs:
        return Pairs(Path(self.folder), side=round(self.tokens**0.5) * PATCH)

    @property
    def stage(self) -> Any:
        return make_stage(self.train, batch=self.batch, steps=self.steps, row=self.row, micro=self.micro)


# ---- ours --------------------------------------------------------------------------------------------------------
def kept(case: Case, model: Any, source: Any, reader: Any, *, place: Path) -> Any:
    """The reference's log-probabilities, kept below `place`; None where adapters are turned off for it."""
    from quintet.lab.references import keep_references
    from quintet.training.loop import Settings

    return keep_references(
        model,
        case.stage,
        source,
        reader,
        settings=Settings(precision=case.precision),  # type: ignore[arg-type]
        folder=place / "references",
        note=lambda text: None,
    )


def peft_name(name: str) -> str:
    """The name that a weight of our LLM has in transformers' model."""
    from quintet.components.llms.weights import hf_name

    return hf_name(name).replace("model.", "model.language_model.", 1)


# ---- TRL ---------------------------------------------------------------------------------------------------------
def trainer(case: Case, policy: Path, callbacks: list[Any]) -> Any:
    """The trainer on the weights in `policy`, with the model that transformers saved first as its reference.

    With adapters `policy` is their folder, in peft's format.
    """
    from datasets import Dataset, Image, Sequence
    from peft import LoraConfig
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    from trl import DPOConfig, DPOTrainer

    rows = json.loads(case.pairs.reference.read_text(encoding="utf-8"))
    table = {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")}
    data = Dataset.from_dict(table | {"images": [[row["image"]] for row in rows]})
    lora = case.train == "lora"
    start = case.pairs.model if lora else policy
    model = LlavaForConditionalGeneration.from_pretrained(start)
    model.requires_grad_(False)
    if not lora:
        for part in (model.model.multi_modal_projector, model.model.language_model, model.lm_head):
            part.requires_grad_(True)
    # By itself the trainer loads the folder that the model came from.
    beside = None if start == case.pairs.model else case.pairs.model
    arguments = DPOConfig(
        output_dir=str(Path(case.folder) / "trainer"),
        beta=BETA,
        max_length=None,
        gradient_checkpointing=False,
        per_device_train_batch_size=case.batch,
        max_steps=case.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=case.precision == "bf16",
        use_cpu=True,
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    made = DPOTrainer(
        model=model,
        ref_model=LlavaForConditionalGeneration.from_pretrained(beside) if beside else None,
        args=arguments,
        train_dataset=data.cast_column("images", Sequence(Image())),
        processing_class=AutoProcessor.from_pretrained(case.pairs.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEAR) if lora else None,
        callbacks=callbacks,
    )
    if lora:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        told = set_peft_model_state_dict(made.model, load_file(policy / "adapter_model.safetensors"))
        assert not told.unexpected_keys, told
    return made
