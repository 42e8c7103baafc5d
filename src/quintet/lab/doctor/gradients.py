"""The contract of gradients: what a stage trains gets one on real samples, and what is frozen gets none."""

from collections.abc import Iterator, Sequence

from quintet.errors import ConfigError
from quintet.lab.doctor.bench import row, seeded, wake
from quintet.lab.doctor.findings import Finding
from quintet.lab.doctor.patient import Case
from quintet.model.mllm import MLLM
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import rate_of, set_trainable
from quintet.training.stage import Stage

__all__ = ["gradients"]

NAMES = 4
"""Names of parameters that a line holds."""


def gradients(model: MLLM, stage: Stage, cases: list[Case], *, pad: int) -> Iterator[Finding]:
    """One backward pass as the stage would take it. `model` is changed: it takes the stage's adapters and gradients."""
    with seeded():
        try:
            set_trainable(model, stage.train)
            model.fused = stage.fused
        except ConfigError as error:
            yield _finding("unknown-part", str(error), "", "correct the stage's `train`")
            return
        wake(model)
        model.train()
        OBJECTIVES[stage.objective](model, row(cases, pad=pad), stage.extra)[0].backward()
    met = {item.kind for case in cases for item in case.tokens.items}
    for part, module in model.parts().items():
        rate = rate_of(part, stage.train)
        own = list(module.named_parameters())
        learns = [name for name, p in own if p.requires_grad]
        silent = [name for name, p in own if p.requires_grad and (p.grad is None or not bool(p.grad.any()))]
        if rate is None:
            loose = [name for name, p in own if p.requires_grad or p.grad is not None]
            if loose:
                found = f"{_some(loose, own)} of the frozen part {part} with a gradient"
                yield _finding("frozen-learns", found, "none", f"give {part} a rate, or stop it from unfreezing itself")
            continue
        fixed = [] if rate.lora or rate.upper < 1 else [name for name, p in own if not p.requires_grad]
        if fixed or not learns:
            found = f"{_some(fixed or [n for n, _ in own], own)} of {part} that cannot learn"
            yield _finding("trained-frozen", found, "all of them learn", "the part must not freeze itself")
        if silent:
            kind = part.split(".")[1] if part.startswith(("encoders.", "connectors.")) else ""
            hint = "freeze or remove what is not used: it would stop data-parallel training and spoil checkpoints"
            if kind and kind not in met:
                hint = f"these rows hold no {kind}; leave {part} out of `train`, or use other rows"
            yield _finding("unused-parameter", f"no gradient for {_some(silent, own)} of {part}", "one for each", hint)


def _some(names: list[str], own: Sequence[tuple[str, object]]) -> str:
    shown = ", ".join(names[:NAMES]) + (", …" if len(names) > NAMES else "")
    return f"{len(names)} of {len(own)} parameters ({shown})"


def _finding(fault: str, found: str, expected: str, do: str) -> Finding:
    return Finding(contract="gradients", fault=fault, found=found, expected=expected, do=do)
