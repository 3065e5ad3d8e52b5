"""The assumptions A1 to A4 of docs/reproducibility.md, checked on what an implementation computes and compiles to."""

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

EXP_SHA256 = "537ce2794ff948b80572fd0ef5dd7c9d56c3dfa4c36d0a53c2b620aefe28066e"
LOG_SHA256 = "47e52e765afb1c7cc70e1c9e0b23b86f02be70ed98c244830c4a8c647799be12"
CHUNK = 2**20


class Operations(NamedTuple):
    """What a framework calls its functions, and how it compiles one."""

    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    round: Callable[[Any], Any]
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]


def operations(implementation: str) -> Operations:
    """Return the operations of an implementation whose framework has been started."""
    if implementation == "numpy":
        return Operations(np.exp, np.log, np.round, lambda function: function)
    if implementation == "jax":
        import jax
        import jax.numpy as jnp

        import stages.model.softmax_jax  # noqa: F401 - enables float64

        return Operations(jnp.exp, jnp.log, jnp.round, jax.jit)
    import tensorflow as tf

    return Operations(
        tf.exp,
        tf.math.log,
        tf.round,
        lambda function: tf.function(function, jit_compile=implementation.endswith("xla")),
    )


def exp_and_log(ops: Operations) -> list[str]:
    """Return the SHA-256 of all rounded exponentials and of all rounded logarithms that can occur."""

    def sha256_over(numbers: range, function: Callable[[Any], Any]) -> str:
        compiled, sha256 = ops.compile(function), hashlib.sha256()
        for start in range(numbers.start, numbers.stop, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, numbers.stop), dtype=np.float64)
            sha256.update(np.asarray(compiled(chunk)).astype("<i4").tobytes())
        return sha256.hexdigest()

    return [
        sha256_over(range(17 * 2**20), lambda j: ops.round(ops.exp(-j / 2.0**20) * 2.0**22)),
        sha256_over(range(1, 2**24 + 1), lambda n: ops.round(ops.log(n / 2.0**24) * 2.0**20)),
    ]


def failed_assumptions(ops: Operations) -> list[str]:
    """Check A1, A2 and A4 of docs/reproducibility.md; return those that fail, in words."""

    def agrees(function: Callable[..., Any], arguments: tuple[Any, ...], expected: Any) -> bool:
        return np.array_equal(np.asarray(ops.compile(function)(*arguments)), expected)

    ties = np.arange(-1000, 1000) + 0.5
    x, W = exact_product()
    a, s, quotients = quotients_at_the_margin()
    exp, log = exp_and_log(ops)
    checks = {
        "A1: rounding half to even": agrees(ops.round, (ties,), 2 * np.rint(ties / 2)),
        "A2: exact sums in a matrix product": agrees(lambda x, W: x @ W, (x / 256, W / 2.0**26), x @ W / 2.0**34),
        "A4: exp": exp == EXP_SHA256,
        "A4: log": log == LOG_SHA256,
        "A4: division": agrees(lambda a, s: ops.round(a / s * 2.0**24), (a, s), quotients),
    }
    return [name for name, holds in checks.items() if not holds]


def exact_product() -> tuple[Any, Any]:
    """Return grey levels (256, 1024) and weights (1024, 10) in steps of 2^-26, int64, at the limit of exactness."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (256, 1024)), rng.integers(-513 * 2**26, 513 * 2**26 + 1, (1024, 10))


def quotients_at_the_margin() -> tuple[Any, Any, Any]:
    """Return fractions a/s, as float64, as near to a rounding boundary of the grid 2^-24 as they can be, and on it.

    a * 2^25 = +-1 modulo s makes a/s miss an odd multiple of 2^-25 by 1/(s 2^25); s = 2^25 meets it. The third array
    holds a/s * 2^24 rounded half to even in whole numbers.
    """
    rng = np.random.default_rng(0)
    pairs = [(a, 2**25) for a in range(1, 2**12)]
    for s in (rng.integers(2**21, 10 * 2**21, 20_000) * 2 + 1).tolist():
        inverse = pow(2**25, -1, s)
        pairs += [(a, s) for a in (inverse, s - inverse) if a <= 2**22]
    a, s = np.array(pairs).T
    quotient, rest = np.divmod(a << 24, s)
    rounded = quotient + ((2 * rest > s) | ((2 * rest == s) & (quotient % 2 == 1)))
    return a.astype(np.float64), s.astype(np.float64), rounded.astype(np.float64)


def folded_constants(program: str) -> list[str]:
    """Return what breaks A3 in the text of an optimized XLA program: the constants that are no powers of two.

    A product's scale is a constant of the program, or ``alpha`` and ``beta`` in its call of a GPU's matrix library.
    XLA leaves the numbers of long constants out of the text; what it folds into a product is a single number.
    """
    lists = re.findall(r"= (?:b?f|c)\d\w*\[[^=\n]* constant\(([^)]*)\)", program)
    lists += re.findall(r'"(?:alpha_real|alpha_imag|beta)"\s*:\s*"?([-+.\deE]+)', program)
    values = (value for text in lists for value in re.split(r"[{},\s]+|/\*.*?\*/", text) if value)
    return [value for value in values if value != "..." and not scales_exactly(float(value))]


def scales_exactly(factor: float) -> bool:
    """Return whether a product with ``factor`` is exact: it is a power of two, zero or not finite."""
    return not factor or not np.isfinite(factor) or bool(np.frexp(abs(factor))[0] == 0.5)


def compiled_program(model: Any, arguments: tuple[Any, ...]) -> str:
    """Return the text of a model's optimized ``fit_epoch``, in either framework."""
    if hasattr(model.fit_epoch, "experimental_get_compiler_ir"):
        return str(model.fit_epoch.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo"))
    from stages.model import softmax_jax

    return str(softmax_jax.fit_epoch.lower(model.state, *arguments, model.lr, model.batch_size).compile().as_text())
