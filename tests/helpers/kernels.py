"""Sets of kernels that stand for other processors, and Python started with each."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

__all__ = ["KERNELS", "run_python"]

# PyTorch, oneDNN and MKL each choose by the processor; so do NumPy and the C library. Where nothing can be chosen (Arm)
# the variables change nothing, and what a test asserts has to hold all the same.
KERNELS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4",
    },
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
    },
}
_VARIABLES = {name for variables in KERNELS.values() for name in variables}


def run_python(
    arguments: Sequence[str], kernels: str, *, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this Python with a set of kernels, and return what it said; a failure shows its stderr."""
    inherited = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {**KERNELS[kernels], **(variables or {})}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found
