"""What this machine computes with. About 1 s."""

import pytest
import torch

from quintet.errors import ConfigError
from quintet.training.hardware import autocast, matmul_peak, peak_memory, pick_precision, prepare_cpu

CPU = torch.device("cpu")


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert pick_precision("fp32", CPU) == "fp32"
    assert pick_precision("bf16", CPU) == "bf16"


def test_the_choice_is_the_same_each_time() -> None:
    """It depends on what the processor is; a timing would make two runs of one command differ."""
    assert len({pick_precision("auto", CPU) for _ in range(5)}) == 1


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="ask for fp32 or bf16"):
        pick_precision("auto", torch.device("meta"))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_product_runs_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):  # type: ignore[arg-type]
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_peak_is_some_number_of_operations_a_second() -> None:
    """Between a pocket calculator and the largest machine there is."""
    assert 1e8 < matmul_peak(CPU, "fp32") < 1e17


def test_memory_is_counted_in_bytes() -> None:
    """torch alone takes 100 MB."""
    assert 1e8 < peak_memory(CPU) < 1e12


def test_preparing_flushes_numbers_that_are_too_small() -> None:
    """1e-39 is below the normal range of float32."""
    prepare_cpu()
    assert float(torch.tensor(1e-30) * torch.tensor(1e-9)) == 0.0
