"""NVIDIA's exp and log on this CPU, over every input that can occur: A4 of docs/reproducibility.md without a GPU.

Compilers for NVIDIA GPUs take both from libdevice, a library of LLVM code that comes with the CUDA packages. Here LLVM
compiles that code for this CPU, with the GPU's instructions replaced by what the manual of PTX says of them. All of
these are exact or round once, but the reciprocal in the logarithm: it reads and gives the upper 32 bits of a float64,
approximately. Here it is truncated to them, with an error added in units of the last of these bits, 2^-20 of a binade.
"""

import ctypes
import importlib.metadata
import json
import re
import struct
import time
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from tools.proof.assumptions import EXP_SHA256, LOG_SHA256, Operations, exp_and_log, scales_exactly

PACKAGE, FILE = "nvidia-cuda-nvcc-cu12", "nvidia/cuda_nvcc/nvvm/libdevice/libdevice.10.bc"
FUNCTIONS = "__nv_exp", "__nv_log"
ERRORS = 0, -64, 64

INSTRUCTIONS = """
declare double @llvm.fma.f64(double, double, double)
declare float @llvm.fabs.f32(float)
define internal double @nvvm.fma.rn.d(double %x, double %y, double %z) alwaysinline {
  %result = call double @llvm.fma.f64(double %x, double %y, double %z)
  ret double %result
}
define internal double @nvvm.add.rn.d(double %x, double %y) alwaysinline {
  %result = fadd double %x, %y
  ret double %result
}
define internal i32 @nvvm.d2i.lo(double %x) alwaysinline {
  %bits = bitcast double %x to i64
  %result = trunc i64 %bits to i32
  ret i32 %result
}
define internal i32 @nvvm.d2i.hi(double %x) alwaysinline {
  %bits = bitcast double %x to i64
  %upper = lshr i64 %bits, 32
  %result = trunc i64 %upper to i32
  ret i32 %result
}
define internal double @nvvm.lohi.i2d(i32 %lower, i32 %upper) alwaysinline {
  %two = insertelement <2 x i32> poison, i32 %lower, i32 0
  %both = insertelement <2 x i32> %two, i32 %upper, i32 1
  %result = bitcast <2 x i32> %both to double
  ret double %result
}
define internal float @nvvm.fabs.f32(float %x) alwaysinline {
  %result = call float @llvm.fabs.f32(float %x)
  ret float %result
}
define internal float @nvvm.fabs.ftz.f32(float %x) alwaysinline {
  %result = call float @llvm.fabs.f32(float %x)
  ret float %result
}
define internal i32 @__nvvm_reflect(ptr %setting) alwaysinline {
  ret i32 0
}
define internal double @nvvm.rcp.approx.ftz.d(double %x) alwaysinline {
  %upper = call i32 @nvvm.d2i.hi(double %x)
  %read = call double @nvvm.lohi.i2d(i32 0, i32 %upper)
  %reciprocal = fdiv double 1.0, %read
  %truncated = call i32 @nvvm.d2i.hi(double %reciprocal)
  %given = add i32 %truncated, ERROR
  %result = call double @nvvm.lohi.i2d(i32 0, i32 %given)
  ret double %result
}
"""
OVER_AN_ARRAY = """
define void @FUNCTION_over_an_array(ptr %arguments, ptr %values, i64 %n) {
start:
  br label %next
next:
  %i = phi i64 [ 0, %start ], [ %i_next, %next ]
  %argument = getelementptr double, ptr %arguments, i64 %i
  %value = getelementptr double, ptr %values, i64 %i
  %x = load double, ptr %argument
  %y = call double @FUNCTION(double %x)
  store double %y, ptr %value
  %i_next = add i64 %i, 1
  %more = icmp ult i64 %i_next, %n
  br i1 %more, label %next, label %end
end:
  ret void
}
"""


def code() -> dict[str, str]:
    """Return libdevice's ``__nv_exp`` and ``__nv_log`` as LLVM text, by their names."""
    path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
    with open(str(path), "rb") as file:
        library = llvm.parse_bitcode(file.read())
    return {name: str(library.get_function(name)) for name in FUNCTIONS}


def coefficients(text: str) -> set[float]:
    """Return the magnitudes of the numbers in a function's LLVM text, but those that scale exactly."""
    numbers = re.findall(r"double (0x[\dA-F]{16}|-?\d[-+.\de]*)", text)
    values = (abs(struct.unpack(">d", bytes.fromhex(n[2:]))[0] if n[:2] == "0x" else float(n)) for n in numbers)
    return {value for value in values if not scales_exactly(value)}


def multiply_adds(text: str) -> int:
    """Return how many fused multiply-adds a function's LLVM text has, counting equal ones once, as compilers do."""
    return len(set(re.findall(r"@llvm\.nvvm\.fma\.rn\.d(\(.*?\))", text)))


def compiled(functions: dict[str, str], error: int = 0) -> Operations:
    """Compile LLVM text as ``code`` returns it for this CPU, with an error of the reciprocal in its last units."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    text = INSTRUCTIONS.replace("ERROR", str(error)) + '@.str = private constant [11 x i8] c"__CUDA_FTZ\\00"\n'
    for name, function in functions.items():
        without_attributes = re.sub(r" #\d+", "", function)
        text += without_attributes.replace("@llvm.nvvm.", "@nvvm.") + OVER_AN_ARRAY.replace("FUNCTION", name)
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), target)
    engine.finalize_object()

    def over_an_array(name: str) -> Callable[[Any], Any]:
        def call(x: Any) -> Any:
            address = engine.get_function_address(f"{name}_over_an_array")
            arguments = np.ascontiguousarray(x, dtype=np.float64)
            values = np.empty_like(arguments)
            function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)
            function(arguments.ctypes.data, values.ctypes.data, len(arguments))
            return values

        return call

    exp, log = (over_an_array(name) for name in FUNCTIONS)
    return Operations(exp, log, np.round, lambda function: function)


def failures(functions: dict[str, str], error: int = 0) -> list[str]:
    """Return what of A4 fails for the same arguments."""
    exp, log = exp_and_log(compiled(functions, error))
    return ["A4: exp"] * (exp != EXP_SHA256) + ["A4: log"] * (log != LOG_SHA256)


def main() -> None:
    """Print a row for verify as JSON."""
    start = time.perf_counter()
    functions = code()
    row = {
        "implementation": "NVIDIA exp, log",
        "place": f"libdevice {importlib.metadata.version(PACKAGE)}, on the CPU",
        "failed": [f"{each}, reciprocal off by {error}" for error in ERRORS for each in failures(functions, error)],
        "found": f"exp {EXP_SHA256[:8]}, log {LOG_SHA256[:8]}, reciprocal off by {', '.join(map(str, ERRORS))}",
    }
    print(json.dumps([row | {"wall": time.perf_counter() - start}]))


if __name__ == "__main__":
    main()
