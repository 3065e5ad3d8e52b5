"""The programs that JAX makes for NVIDIA GPUs: that they keep to the assumptions, and that no broken one passes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llvmlite", reason="JAX's compiler for GPUs and LLVM come with: make test EXTRAS=proof")
pytest.importorskip(
    "jax_plugins.xla_cuda12", reason="JAX's compiler for GPUs and LLVM come with: make test EXTRAS=proof"
)

from tools.proof import gpu_program
from tools.proof.assumptions import folded_constants
from tools.proof.gpu_program import Program

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json
import jax
from stages.model import softmax_jax
from stages.runtime import devices
from tools.proof import gpu_program

devices.start("jax", "cpu")
described = gpu_program.arguments("sm_90")["fit_epoch"]
folded = jax.jit(softmax_jax.fit_epoch.__wrapped__, static_argnames=("lr", "batch_size"))
programs = {
    f"{name} {form}": gpu_program.compiled(function, described, triton=triton)[:2]
    for name, function in {"model": softmax_jax.fit_epoch, "folded": folded}.items()
    for form, triton in gpu_program.TRITON.items()
}
print(json.dumps(programs))
"""


def printed(environment: dict[str, str], *arguments: str) -> Any:
    """Run Python, in a process whose JAX has not been started, and return what it printed as JSON."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def programs(environment: dict[str, str]) -> dict[str, Program]:
    """The compiled epoch for an H100, and one with lr as a constant, each in both forms."""
    return {name: Program(*texts, None) for name, texts in printed(environment, "-c", SCRIPT).items()}


def test_the_model_keeps_to_the_assumptions_on_every_gpu_in_both_forms(environment: dict[str, str]) -> None:
    rows = printed(environment, "-m", "tools.proof.gpu_program")

    assert {row["place"]: row["failed"] for row in rows} == {
        f"{gpu}, products by {form}": [] for gpu in ("sm_80", "sm_90", "sm_100") for form in ("Triton", "cuBLAS")
    }
    for row in rows:
        assert re.match(
            r"fit_epoch \d+ kernels a step, \d+ \+ \d MB; validation_step \d kernels, \d+ \+ \d+ MB$", row["found"]
        )
        assert {"div.rn.f64", "cvt.rni.f64.f64", "fma.rn.f64"} < row["instructions"].keys()
        assert {name for name in row["instructions"] if "approx" in name} == {"rcp.approx.ftz.f64"}


@pytest.mark.parametrize("form", ["Triton", "cuBLAS"])
def test_a_folded_learning_rate_breaks_a3_in_both_forms(programs: dict[str, Program], form: str) -> None:
    program = programs[f"folded {form}"]
    scale = str(0.1 * 2**26)  # lr, with the scale of its snap

    assert (f'"alpha_real":{scale}' in program.hlo) == (form == "cuBLAS")
    assert folded_constants(program.hlo) == [scale, scale]  # of W and of b
    assert f"A3: constant {scale}" in gpu_program.failures(program)


@pytest.mark.parametrize(
    ("form", "text", "broken", "failure"),
    [
        ("Triton", "= f64[10]{0} ", "= f32[10]{0} ", "A2: f32 in the program"),
        ("Triton", "constant(16777216)", "constant({...})", "A3: long constant"),
        ("cuBLAS", '"alpha_real":1,', '"alpha_real":0.5,', "A3: call with {"),
        ("cuBLAS", '"beta":0,', '"beta":0.25,', "A3: call with {"),
        ("cuBLAS", '"__cublas$lt$matmul"', '"mine"', "A2: call of mine"),
        ("Triton", "div.rn.f64", "div.full.f32", "A1: div.full.f32 in loop_"),
        ("Triton", "cvt.rni.f64.f64", "cvt.rmi.f64.f64", "A1: cvt.rmi.f64.f64 in loop_"),
        ("Triton", "sub.rn.f64", "sub.f64", "A1: sub.f64 in loop_"),
        ("Triton", "max.f64", "max.f32", "A1: max.f32 in loop_"),
        ("Triton", "col.f64.f64.f64.f64", "col.f32.tf32.tf32.f32", "A1: mma.sync.aligned.m8n8k4.row.col.f32.tf32.tf32"),
        ("cuBLAS", "add.rn.f64", "fma.rn.f64", "A1: 1 fused multiply-adds, where libdevice has 0 in "),
        ("Triton", "0d3F81111111122322", "0d3F81111111122323", "A3, A4: other numbers than libdevice's in loop_"),
        ("cuBLAS", "0d3E70000000000000", "0d3E70000000000001", "A3, A4: other numbers than libdevice's in loop_"),
    ],
)
def test_a_broken_program_is_named_by_its_assumption(
    programs: dict[str, Program], form: str, text: str, broken: str, failure: str
) -> None:
    hlo, kernels, _ = programs[f"model {form}"]
    assert gpu_program.failures(Program(hlo, kernels, None)) == []
    assert any(text in each for each in [hlo, *kernels])

    changed = Program(hlo.replace(text, broken), [kernel.replace(text, broken) for kernel in kernels], None)
    assert any(each.startswith(failure) for each in gpu_program.failures(changed)), gpu_program.failures(changed)
