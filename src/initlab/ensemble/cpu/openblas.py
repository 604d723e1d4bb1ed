"""OpenBLAS by ctypes: products of float32 matrices on AMD processors with 512-bit vectors.

torch multiplies by MKL, which takes its 256-bit code on processors that are not Intel's. OpenBLAS has 512-bit code and
does not choose it there by itself; it is chosen by an environment variable, in a copy of the library that no one else
uses: products of numpy and scipy do not change. Every product is computed by the thread that asks for it.

Worth: with `torch.mm` instead, training takes 1.9 times the CPU time (8 perceptrons of width 128 and depth 3 or 10, one
thread, AMD EPYC of family 26 with AVX-512, torch 2.14.1).

Private interface: the shared library inside the package scipy-openblas32 with its functions scipy_cblas_sgemm and
scipy_openblas_get_corename, seen in 0.3.29 to 0.3.34. Where one of them is missing, torch multiplies.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from initlab.ensemble.cpu.processor import amd_family, fast_cpu_enabled

CORE_NAME = "SkylakeX"  # OpenBLAS's name of its code for 512-bit vectors
SETTINGS = {"OPENBLAS_CORETYPE": CORE_NAME, "OPENBLAS_NUM_THREADS": "1"}
ZEN_4 = 25  # AMD's family; Zen 3, which has no 512-bit vectors, is of it too
ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112  # constants of the C interface of BLAS
MIN_FLOPS = 1e6  # operations of a product from which one call for every member is faster than one for all by torch


class Matrix(NamedTuple):
    """A matrix as BLAS takes it, by address; the tensor keeps the memory allocated."""

    tensor: Tensor
    address: int
    rows: int
    columns: int


def as_matrix(tensor: Tensor) -> Matrix:
    """Return a tensor as a matrix for BLAS, which reads and writes by address and checks nothing.

    Raises:
        ValueError: it is no contiguous matrix on the CPU.

    >>> as_matrix(torch.zeros(2, 3)).columns
    3
    """
    if tensor.dim() != 2 or not tensor.is_cpu or not tensor.is_contiguous():
        shape, gaps = "x".join(map(str, tensor.shape)), "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise ValueError(f"BLAS takes contiguous matrices on the CPU: this is {shape}, {gaps}, on {tensor.device}")
    return Matrix(tensor, tensor.data_ptr(), *tensor.shape)


def gemm(
    out: Matrix, a: Matrix, b: Matrix, transpose_a: bool = False, transpose_b: bool = False, add: bool = False
) -> None:
    """Write a b, either of them transposed, to `out`, or add it to what is there.

    Raises:
        ValueError: the shapes do not fit each other, or a matrix is not of float32.

    >>> out, ones = as_matrix(torch.ones(2, 2)), as_matrix(torch.ones(2, 3))
    >>> if sgemm() is not None:
    ...     gemm(out, ones, ones, transpose_b=True, add=True)
    ...     assert out.tensor.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    """
    rows, inner = (a.columns, a.rows) if transpose_a else (a.rows, a.columns)
    second = (b.columns, b.rows) if transpose_b else (b.rows, b.columns)
    if (rows, out.columns) != (out.rows, second[1]) or inner != second[0]:
        raise ValueError(f"shapes cannot be multiplied: {rows}x{inner} by {second[0]}x{second[1]} into {_shape(out)}")
    if not a.tensor.dtype == b.tensor.dtype == out.tensor.dtype == torch.float32:
        raise ValueError(f"sgemm multiplies float32: {a.tensor.dtype} by {b.tensor.dtype} into {out.tensor.dtype}")
    call = sgemm()
    assert call is not None
    call(
        ROW_MAJOR, TRANSPOSE if transpose_a else NO_TRANSPOSE, TRANSPOSE if transpose_b else NO_TRANSPOSE,
        rows, out.columns, inner, 1.0, a.address, a.columns, b.address, b.columns,
        1.0 if add else 0.0, out.address, out.columns,
    )  # fmt: skip


def _shape(matrix: Matrix) -> str:
    return f"{matrix.rows}x{matrix.columns}"


def fast_product(a: Tensor, b: Tensor) -> Callable[[Tensor, Tensor, Tensor | None, Tensor], None] | None:
    """Return the function that multiplies each member's matrices of a [N, p, q] and b [N, q, r], where torch is slower.

    It takes two matrices, a bias or None, and the matrix to write to.
    """
    large = 2 * a.shape[1] * b.shape[1] * b.shape[2] >= MIN_FLOPS and a.is_cpu and a.dtype == torch.float32
    return multiply_strided if large and fast_cpu_enabled() and openblas_is_faster() else None


def multiply_strided(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write a b (+ bias) of two float32 matrices of any strides; `out` is contiguous."""
    if bias is not None:
        out.copy_(bias)
    (first, transpose_a), (second, transpose_b) = contiguous_or_transposed(a), contiguous_or_transposed(b)
    gemm(as_matrix(out), as_matrix(first), as_matrix(second), transpose_a, transpose_b, add=bias is not None)


def contiguous_or_transposed(matrix: Tensor) -> tuple[Tensor, bool]:
    """Return a matrix or its transpose, whichever is contiguous (else a copy), and whether it is the transpose.

    >>> wide = torch.ones(2, 3)
    >>> [contiguous_or_transposed(matrix)[1] for matrix in (wide, wide.t(), wide[:, :2])]
    [False, True, False]
    """
    if not matrix.is_contiguous() and matrix.t().is_contiguous():
        return matrix.t(), True
    return matrix.contiguous(), False


@cache
def openblas_is_faster() -> bool:
    """Return whether OpenBLAS is installed and faster than torch's library on this processor.

    A rule, not a measurement: the bits of every result depend on it.
    """
    return amd_family() >= ZEN_4 and sgemm() is not None


@cache
def sgemm() -> Callable[..., None] | None:
    """Return OpenBLAS's product of two float32 matrices; None where there is no OpenBLAS."""
    function: Any = getattr(load_openblas(), "scipy_cblas_sgemm", None)
    if function is not None:
        whole, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
        function.argtypes = [whole] * 6 + [real, address, whole, address, whole, real, address, whole]
        function.restype = None
    return function


@cache
def load_openblas() -> Any:
    """Return OpenBLAS with its code for 512-bit vectors; None where the package or the processor lacks it."""
    # Where the processor cannot run the code that it is set to, OpenBLAS runs it all the same.
    able = sys.platform.startswith("linux") and torch.backends.cpu.get_cpu_capability() == "AVX512"
    # The package is not imported: that would offer this copy's functions to every library that is loaded later.
    spec = find_spec("scipy_openblas32") if able else None
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    path = next((path for folder in folders for path in Path(folder, "lib").glob("libscipy_openblas*.so")), None)
    if path is None:
        return None
    before = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    os.environ.update(SETTINGS)
    try:
        library = ctypes.CDLL(str(path))
    finally:
        for name in SETTINGS:
            del os.environ[name]
        os.environ.update(before)
    core: Any = getattr(library, "scipy_openblas_get_corename", None)
    if core is None:
        return None
    core.restype = ctypes.c_char_p
    return library if core().decode().lower() == CORE_NAME.lower() else None
