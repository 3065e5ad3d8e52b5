"""What is read in the compiled programs; tests/model/test_exact.py breaks the other assumptions."""

import numpy as np
import pytest

from stages.model.frameworks import softmax_regression
from stages.runtime import devices
from tools.proof import assumptions

RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (600, 12, 12), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 600, dtype=np.uint8)


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_compiled_epoch_has_no_constant_that_could_scale_a_product(framework: str) -> None:
    lr = 0.1234567
    devices.start(framework, "cpu")
    model = softmax_regression(framework, 144, lr, batch_size=256)
    order = np.arange(600, dtype=np.int32)
    program = assumptions.compiled_program(model, tuple(model.to_device(array) for array in (IMAGES, LABELS, order)))

    assert " dot(" in program
    assert f"constant({2.0**-24:.17g})" in program
    # Its constants are powers of two; the size of the last minibatch, of 88 examples, is counted at run time.
    assert assumptions.folded_constants(program) == []


def test_compiled_programs_need_less_than_a_gibibyte_for_the_real_data_set() -> None:
    from stages.model import softmax_jax

    model = softmax_jax.SoftmaxRegressionScratch(1024, 10, 0.1)
    X, y = model.to_device(np.zeros((60_000, 32, 32), np.uint8)), model.to_device(np.zeros(60_000, np.uint8))
    order = model.to_device(np.arange(60_000, dtype=np.int32))
    programs = [
        softmax_jax.fit_epoch.lower(model.state, X, y, order, 0.1, 256),
        softmax_jax.validation_step.lower(model.state, X[:10_000], y[:10_000]),
    ]
    needs = [program.compile().memory_analysis() for program in programs]

    # The training set stays on the device while the validation set is scored.
    assert sum(n.argument_size_in_bytes + n.temp_size_in_bytes + n.output_size_in_bytes for n in needs) < 2**30


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("%c = f64[] constant(0.1), metadata={}", ["0.1"]),
        ("%c = f64[] constant(-0.00390625)", []),
        ("%c = f64[4]{0} constant({0, 1, inf, 0.3}), metadata={}", ["0.3"]),
        ("%c = f64[2,1]{1,0} constant({ /*i0=0*/ {3}, /*i0=1*/ {2} })", ["3"]),
        ("%c = f64[60000]{0} constant({...})", []),
        ("%c = f32[] constant(0.1)", ["0.1"]),
        ("%c = s32[] constant(60000)", []),
        ("%a = f64[] parameter(0)\n  %c = s32[] constant(60000)", []),
        ('custom-call(%a, %b), custom_call_target="__cublas$gemm", {"alpha_real":1,"alpha_imag":0,"beta":1}', []),
        ('custom-call(%a, %b), custom_call_target="__cublas$gemm", {"alpha_real": 0.00390625, "beta": 0}', []),
        ('custom-call(%a, %b), "__cublas$gemm", {"alpha_real":0.1,"alpha_imag":-3,"beta":0}', ["0.1", "-3"]),
        ('custom-call(%a, %b), "__cublas$lt$matmul", {"alpha_real":1,"beta":0.3}', ["0.3"]),
    ],
)
def test_numbers_that_could_scale_a_product_are_found_in_a_program_s_text(text: str, broken: list[str]) -> None:
    assert assumptions.folded_constants(text) == broken
