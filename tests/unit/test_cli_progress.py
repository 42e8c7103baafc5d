"""What stands beside the bars of a training: loss, speed, share of the peak. Milliseconds."""

from rich.console import Console

from quintet.cli.progress import TrainingBars


def step(n: int, *, stage: str = "a") -> dict[str, object]:
    return {
        "stage": stage,
        "step": n,
        "steps": 4,
        "loss": 2.0 / n,
        "tokens": 1000,
        "targets": 100.0,
        "seconds": 0.5 * n,
    }


def test_progress_has_loss_speed_and_share_of_the_peak() -> None:
    """By hand: 1,000 tokens in half a second; (1000 × 3e6 + 100 × 1e6) / 0.5 s = 6.2e9 of 1e10 FLOP/s."""
    console = Console(width=120, record=True, quiet=True)
    with TrainingBars(console, flops={"a": (3e6, 1e6)}, peak=1e10) as bars:
        for n in (1, 2, 3):
            bars.step(step(n))
        assert bars.facts() == "loss 0.667  2,000 tokens/s  62% of peak"


def test_speed_starts_anew_with_a_stage() -> None:
    with TrainingBars(Console(quiet=True), flops={}, peak=0.0) as bars:
        bars.step(step(4))
        bars.step(step(1, stage="b"))
        assert bars.facts() == "loss 2.000"
        bars.step(step(2, stage="b"))
        assert bars.facts() == "loss 1.000  2,000 tokens/s"
