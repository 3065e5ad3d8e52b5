"""NVIDIA's exp and log, on the CPU: they are as the proof assumes, and the check sees it if they are not."""

import pytest

pytest.importorskip("llvmlite", reason="LLVM and libdevice come with: make test EXTRAS=proof")
pytest.importorskip("nvidia.cuda_nvcc", reason="LLVM and libdevice come with: make test EXTRAS=proof")

from tools.proof import libdevice


@pytest.mark.parametrize(("error", "failures"), [(0, []), (64, []), (-64, []), (256, ["A4: log"])])
def test_both_round_as_everywhere_with_a_reciprocal_that_errs_by_64_units(error: int, failures: list[str]) -> None:
    assert libdevice.failures(libdevice.code(), error) == failures


@pytest.mark.parametrize(
    ("function", "coefficient", "changed", "failure"),
    [
        ("__nv_exp", "0x3F81111111122322", "0x3F81111211122322", "A4: exp"),
        ("__nv_log", "0x3F8999999999A3C4", "0x3F899999A999A3C4", "A4: log"),
    ],
)
def test_a_changed_coefficient_is_seen(function: str, coefficient: str, changed: str, failure: str) -> None:
    code = libdevice.code()
    assert coefficient in code[function]

    assert libdevice.failures(code | {function: code[function].replace(coefficient, changed)}) == [failure]


def test_the_fused_multiply_adds_of_each_are_counted_once() -> None:
    assert [libdevice.multiply_adds(text) for text in libdevice.code().values()] == [14, 16]
