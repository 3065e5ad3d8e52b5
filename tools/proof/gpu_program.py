"""What JAX compiles the model to for NVIDIA GPUs, checked without one: A1 to A3 of docs/reproducibility.md.

XLA compiles for a GPU from its description, and writes down what it made: the optimized program (HLO), and each kernel
in PTX, the instructions that NVIDIA's driver takes. An instruction that is not known to keep to A1 and A2 is a failure.
"""

import json
import re
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from stages.core.fashion_mnist import FILES
from stages.core.params import load_params
from stages.model import softmax_jax
from stages.model.frameworks import softmax_regression
from stages.runtime import devices
from tools.proof import libdevice
from tools.proof.assumptions import folded_constants, scales_exactly

GPUS = {
    "sm_80": ("A100", 8, 108, 64, 166912, 167936, 85100068864, 2039040000000, 41943040, 1.41),
    "sm_90": ("H100", 9, 132, 128, 232448, 233472, 84942979072, 3352320000000, 52428800, 1.98),
    "sm_100": ("B200", 10, 148, 128, 232448, 233472, 191514411008, 7672320000000, 132644864, 1.965),
}
"""By architecture: a GPU, and what DESCRIPTION says of it. The sizes decide how work is cut into pieces."""
DESCRIPTION = """
platform_name: "CUDA"
device_description_str: "%s"
gpu_device_info {
  cuda_compute_capability { major: %d minor: 0 }
  core_count: %d fpus_per_core: %d
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: %d shared_memory_per_core: %d
  device_memory_size: %d memory_bandwidth: %d l2_cache_size: %d clock_rate_ghz: %f
}
"""
TRITON = {"Triton": True, "cuBLAS": False}
"""What multiplies matrices: kernels that XLA writes with Triton, or NVIDIA's library."""

FLOATING = re.compile(r"[.:](?:b?f\d|tf32|e\dm\d)|mma|approx|^call")
EXACT = (
    r"(?:add|sub|mul|div)\.rn\.f64|cvt\.rni\.f64\.f64|cvt\.rn\.f64\.[us]\d+"  # round once, as IEEE 754 says
    r"|(?:neg|abs|max|min|selp|mov)\.f64|setp\.\w+\.f64|(?:ld|st)\.[\w.]*f64"  # do not round
)
ONLY_IN = {
    " dot(": r"fma\.rn\.f64|mma\.sync\.aligned\.m\d+n\d+k\d+\.row\.col\.f64\.f64\.f64\.f64",
    " exponential(": r"fma\.rn\.f64|abs\.f32|setp\.\w+\.f32",  # compares the upper half of a float64
    " log(": r"fma\.rn\.f64|rcp\.approx\.ftz\.f64|setp\.\w+\.f32",
}
"""Instructions of matrix products and of libdevice's functions, by the operation of HLO."""


class Program(NamedTuple):
    """What XLA made of a function: its HLO, the PTX of its kernels, its memory in bytes."""

    hlo: str
    kernels: list[str]
    memory: Any


def arguments(architecture: str) -> dict[str, tuple[Any, ...]]:
    """Describe the arguments of the model's functions, by their names, on a GPU and in the sizes of params.yaml."""
    settings = load_params()
    topology = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=DESCRIPTION % GPUS[architecture]
    )
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def described(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def examples(name: str) -> tuple[Any, Any]:
        n = FILES[f"{name}-labels-idx1-ubyte"].shape
        return described((*n, settings.resize.height, settings.resize.width), np.uint8), described(n, np.uint8)

    model: Any = softmax_regression("jax", settings.resize.height * settings.resize.width)
    state = jax.tree.map(lambda parameter: described(parameter.shape, parameter.dtype), model.state)
    X, y = examples("train")
    order = described(y.shape, np.int32)
    return {
        "fit_epoch": (state, X, y, order, settings.train.lr, settings.train.batch_size),
        "validation_step": (state, *examples("t10k")),
    }


def compiled(function: Any, arguments: tuple[Any, ...], *, triton: bool) -> Program:
    """Compile a jitted function for the GPU of its arguments, with one or the other form of matrix products."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_gpu_enable_triton_gemm": triton, "xla_dump_to": folder}
        executable = function.lower(*arguments).compile(compiler_options=options)
        kernels = [path.read_text() for path in sorted(Path(folder).glob("*.ptx"))]
    return Program(executable.as_text(), [text for text in kernels if ".entry" in text], executable.memory_analysis())


def computations(hlo: str) -> dict[str, str]:
    """Return the bodies of a program's computations by their names; the one that starts it is called ENTRY."""
    found = re.findall(r"^(ENTRY|%\S+) [^\n]*\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL)
    return {name.removeprefix("%"): body for name, body in found}


def launches(hlo: str) -> int:
    """Return how many kernels a step of the program's loop launches, or the whole program if it has none."""
    loop = re.search(r" while\([^\n]* body=%([\w.-]+)", hlo)
    return len(re.findall(r" (?:fusion|custom-call)\(", computations(hlo)[loop[1] if loop else "ENTRY"]))


def instructions(kernel: str) -> Counter[str]:
    """Count the instructions of a kernel that compute with floating point, or might: with the names of PTX."""
    names = re.findall(r"(?:^|[;{])\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s", kernel, re.MULTILINE)
    return Counter(name for name in names if FLOATING.search(name))


def failures(program: Program) -> list[str]:
    """Return what in a program breaks A1 to A3, or is not known to keep to them, in words."""
    found = [f"A2: {kind} in the program" for kind in {*re.findall(r"\b(b?f\d\w*|c\d+)\[", program.hlo)} - {"f64"}]
    found += [f"A3: constant {constant}" for constant in folded_constants(program.hlo)]
    found += ["A3: long constant"] * bool(re.search(r"= f64\[[^=\n]* constant\(\{\.\.\.\}\)", program.hlo))
    for target, line in re.findall(r'custom_call_target="([^"]*)"(.*)', program.hlo):
        scales = {name: float(n) for name, n in re.findall(r'"(alpha_real|alpha_imag|beta)":([-+.\deE]+)', line)}
        if not target.startswith("__cublas$"):
            found.append(f"A2: call of {target}")
        elif scales not in [{"alpha_real": 1, "alpha_imag": 0, "beta": beta} for beta in (0, 1)]:
            found.append(f"A3: call with {scales}")
    bodies, functions = computations(program.hlo), libdevice.code()
    fusions = re.findall(r"%(\S+) = [^\n]* fusion\([^\n]* calls=%([\w.-]+)", program.hlo)
    operations = {re.sub(r"[.-]", "_", kernel): bodies[computation] for kernel, computation in fusions}
    for kernel in program.kernels:
        name = re.findall(r"\.entry (\w+)", kernel)[0]
        found += [f"{failure} in {name}" for failure in kernel_failures(kernel, operations.get(name, ""), functions)]
    return found


def kernel_failures(kernel: str, operations: str, functions: dict[str, str]) -> list[str]:
    """Return the same for a kernel's PTX, given its operations in HLO and libdevice's functions as LLVM text."""
    inside = [operation for operation in ONLY_IN if operation in operations]
    allowed = re.compile("|".join([EXACT, *(ONLY_IN[operation] for operation in inside)]))
    counts = instructions(kernel)
    found = [f"A1: {name}" for name in counts if not allowed.fullmatch(name)]
    calls = {"__nv_exp": counts["abs.f32"], "__nv_log": counts["rcp.approx.ftz.f64"]}  # each has one of these
    in_libdevice = sum(count * libdevice.multiply_adds(functions[name]) for name, count in calls.items())
    if " dot(" not in inside and counts["fma.rn.f64"] != in_libdevice:
        found.append(f"A1: {counts['fma.rn.f64']} fused multiply-adds, where libdevice has {in_libdevice}")
    numbers = (struct.unpack(">d", bytes.fromhex(bits))[0] for bits in re.findall(r"\b0d([\dA-F]{16})\b", kernel))
    strange = {abs(number) for number in numbers if not scales_exactly(number)}
    if strange != set().union(*(libdevice.coefficients(functions[name]) for name, count in calls.items() if count)):
        found.append("A3, A4: other numbers than libdevice's")
    return found


def proof(architecture: str, form: str) -> dict[str, Any]:
    """Compile the model for a GPU; return a row for verify, with the instructions counted by their names."""
    start = time.perf_counter()
    programs = {
        name: compiled(getattr(softmax_jax, name), described, triton=TRITON[form])
        for name, described in arguments(architecture).items()
    }
    failed = [f"{failure}, {name}" for name, program in programs.items() for failure in failures(program)]
    failed += [f"{form}, {name}" for name, program in programs.items() if ("__cublas$" in program.hlo) == TRITON[form]]
    if "= f64[] parameter(" not in computations(programs["fit_epoch"].hlo)["ENTRY"]:
        failed.append("A3: lr at run time")
    found = [
        f"{name} {launches(program.hlo)} kernels{' a step' if ' while(' in program.hlo else ''}, "
        f"{program.memory.argument_size_in_bytes / 1e6:.0f} + {program.memory.temp_size_in_bytes / 1e6:.0f} MB"
        for name, program in programs.items()
    ]
    return {
        "implementation": "JAX, compiled",
        "place": f"{architecture}, products by {form}",
        "wall": time.perf_counter() - start,
        "failed": failed,
        "found": "; ".join(found),
        "instructions": sum((instructions(k) for program in programs.values() for k in program.kernels), Counter()),
    }


def main() -> None:
    """Print the rows as JSON."""
    devices.start("jax", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # from which there would be nothing to read
    print(json.dumps([proof(architecture, form) for architecture in GPUS for form in TRITON]))


if __name__ == "__main__":
    main()
