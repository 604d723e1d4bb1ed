"""OpenBLAS beside torch's own library of products, on AMD's processors with vectors of 512 bits.

torch multiplies by MKL, which takes its 256-bit code on processors that are not Intel's. OpenBLAS has code for vectors
of 512 bits and does not take it by itself; so it is told to, in a copy of our own: numpy's and scipy's go on as they
are. It is asked for one thread.

Before it multiplies, a library copies both matrices into the order in which it will read them. Where matrices are
small that takes a tenth of the time and more, and OpenBLAS multiplies them as they lie: up to a million
multiplications, if the second is not turned. Larger products are asked for in pieces of rows that are small, by one
call.

The environment variable INITLAB_FAST_CPU=0 switches this off, and numpy's tanh (ensemble/tanh.py) with it: every
processor then computes by torch alone.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from initlab.ensemble.operands import require_contiguous, require_operand, second_operand_shape

CPUINFO = Path("/proc/cpuinfo")  # where Linux describes it
ALIGNMENT = 64  # bytes: a cache line, and the widest vector
Call: TypeAlias = Callable[[], Any]
CORE_NAME = "SkylakeX"  # OpenBLAS's name of its code for vectors of 512 bits
ZEN_4 = 25  # AMD's family; it is Zen 3's too, which has no vectors of 512 bits
MAX_UNPACKED_SIZE = 10**6  # multiplications up to which OpenBLAS copies nothing first
PIECE_ROWS = 24  # rows: its code for these takes 6 at a time; with fewer, the second matrix would be read too often
SECOND_ADDRESS = 9  # where the address of the second matrix stands among what BLAS is given
ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112  # what the C interface of BLAS calls them


@cache
def fast_cpu_enabled() -> bool:
    """Return whether libraries beside torch's may be used: always, unless INITLAB_FAST_CPU=0 is set."""
    return os.environ.get("INITLAB_FAST_CPU", "1") != "0"


@cache
def openblas_is_faster() -> bool:
    """Is OpenBLAS at hand, and faster here than torch's library?

    A rule, not a measurement: the bits depend on it.
    """
    return torch.backends.mkl.is_available() and amd_family() >= ZEN_4 and sgemm() is not None


@cache
def amd_family() -> int:
    """Return the number of this processor's family where it is AMD's, else 0."""
    if not CPUINFO.exists():
        return 0
    facts = dict(re.findall(r"^(vendor_id|cpu family)\s*:\s*(\S+)$", CPUINFO.read_text(), re.MULTILINE))
    return int(facts.get("cpu family", 0)) if facts.get("vendor_id") == "AuthenticAMD" else 0


@cache
def load_openblas() -> Any:
    """Return OpenBLAS with its code for vectors of 512 bits; None where there is none, or the processor has none.

    Its package is not imported: that would offer this copy's functions to every library that is loaded later.
    """
    # Told to take code that the processor cannot run, it would.
    able = sys.platform.startswith("linux") and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not able or not fast_cpu_enabled():
        return None
    spec = find_spec("scipy_openblas32")
    if spec is None or not spec.submodule_search_locations:
        return None
    for path in sorted(Path(spec.submodule_search_locations[0], "lib").glob("libscipy_openblas*.so")):
        with set_environment(OPENBLAS_CORETYPE=CORE_NAME, OPENBLAS_NUM_THREADS="1"):
            library = ctypes.CDLL(str(path))
        library.scipy_openblas_get_corename.restype = ctypes.c_char_p
        return library if library.scipy_openblas_get_corename().decode().lower() == CORE_NAME.lower() else None
    return None


@cache
def sgemm() -> Callable[..., None] | None:
    """Return OpenBLAS's product of two float32 matrices, where there is OpenBLAS."""
    library = load_openblas()
    if library is None:
        return None
    whole, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function: Any = library.scipy_cblas_sgemm
    function.argtypes = [whole] * 6 + [real, address, whole, address, whole, real, address, whole]
    function.restype = None
    found: Callable[..., None] = function
    return found


@cache
def sgemm_batch() -> Callable[..., None] | None:
    """Return OpenBLAS's products of several pairs of float32 matrices by one call, where it is new enough."""
    found: Callable[..., None] | None = getattr(load_openblas(), "scipy_cblas_sgemm_batch", None)
    return found


@contextmanager
def set_environment(**values: str) -> Iterator[None]:
    """Set variables for as long as a library is loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def gemm(out: Tensor, a: Tensor, b: Tensor, turn_a: bool = False, turn_b: bool = False, add: bool = False) -> Tensor:
    """Write a b, the one or the other turned, or add it to what is there; by OpenBLAS, of float32 matrices.

    None of the three may have gaps. BLAS trusts its caller, so shapes are checked here: `operands` raises ValueError.

    >>> out, a = torch.ones(2, 2), torch.ones(2, 3)
    >>> sgemm() is None or gemm(out, a, a, turn_b=True, add=True).tolist() == [[4.0, 4.0], [4.0, 4.0]]
    True
    """
    gemm_call(out, a, b, turn_a, turn_b, add)()
    return out


def gemm_call(out: Tensor, a: Tensor, b: Tensor, turn_a: bool = False, turn_b: bool = False, add: bool = False) -> Call:
    """Return `gemm` of matrices that stay where they are, as one call: looking them up takes longer than calling.

    The matrices must outlive the call.
    """
    require_operand(b, second_operand_shape(out, a, turn_a, turn_b))
    call, several = sgemm(), sgemm_batch()
    assert call is not None
    if several is None or turn_b or not PIECE_ROWS * b.numel() <= MAX_UNPACKED_SIZE < len(out) * b.numel():
        return partial(call, *gemm_arguments(out, a, b.data_ptr(), turn_a, turn_b, add))
    return partial(several, *gemm_batch_arguments(out, a, b, turn_a, add))


def batch_gemm_call(out: Tensor, a: Tensor, turn_b: bool = False, add: bool = False) -> Callable[[Tensor], None]:
    """Return `gemm` as a call that is given the second matrix; the other two must outlive it.

    >>> out, a = torch.zeros(2, 2), torch.ones(2, 3)
    >>> sgemm() is None or batch_gemm_call(out, a)(torch.ones(3, 2)) or out.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    True
    """
    wanted = second_operand_shape(out, a, turn_b=turn_b)
    call, others = sgemm(), gemm_arguments(out, a, 0, turn_b=turn_b, add=add)
    assert call is not None
    second = others[SECOND_ADDRESS]

    def multiply(b: Tensor) -> None:
        require_operand(b, wanted)
        second.value = b.data_ptr()
        call(*others)

    return multiply


def gemm_arguments(
    out: Tensor, a: Tensor, b: int, turn_a: bool = False, turn_b: bool = False, add: bool = False
) -> tuple[Any, ...]:
    """Return what BLAS wants to know of a product, as C has it; the second matrix begins at address `b`."""
    (rows, columns), (height, width) = out.shape, a.shape
    inner = height if turn_a else width
    whole, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    return (
        whole(ROW_MAJOR), whole(TRANSPOSE if turn_a else NO_TRANSPOSE), whole(TRANSPOSE if turn_b else NO_TRANSPOSE),
        whole(rows), whole(columns), whole(inner),
        real(1.0), address(a.data_ptr()), whole(width), address(b), whole(inner if turn_b else columns),
        real(1.0 if add else 0.0), address(out.data_ptr()), whole(columns),
    )  # fmt: skip


def gemm_batch_arguments(out: Tensor, a: Tensor, b: Tensor, turn_a: bool, add: bool) -> tuple[Any, ...]:
    """Return what BLAS wants to know of a product in pieces of rows: those of one size, and what remains."""
    (rows, columns), (inner, _) = out.shape, b.shape
    pieces, remaining = divmod(rows, PIECE_ROWS)
    groups = 2 if remaining else 1
    whole, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p

    def alike(kind: Any, value: float) -> Any:
        return (kind * groups)(*[value] * groups)

    def beginnings(matrices: Sequence[Tensor]) -> Any:
        return (address * len(matrices))(*(matrix.data_ptr() for matrix in matrices))

    first, found = a.split(PIECE_ROWS, dim=int(turn_a)), out.split(PIECE_ROWS)
    return (
        whole(ROW_MAJOR), alike(whole, TRANSPOSE if turn_a else NO_TRANSPOSE), alike(whole, NO_TRANSPOSE),
        (whole * 2)(PIECE_ROWS, remaining), alike(whole, columns), alike(whole, inner),
        alike(real, 1.0), beginnings(first), alike(whole, a.shape[1]),
        beginnings([b] * len(found)), alike(whole, columns),
        alike(real, 1.0 if add else 0.0), beginnings(found), alike(whole, columns),
        whole(groups), (whole * 2)(pieces, 1),
    )  # fmt: skip


def dot_call(x: Tensor, y: Tensor) -> Callable[[], float]:
    """Return the call that gives the sum of the products of two tensors' entries, as they are then.

    OpenBLAS takes half the time of torch's. The tensors have no gaps, and must outlive the call.

    >>> x, y = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    >>> dot_call(x, y)(), dot_call(x, x)()
    (11.0, 25.0)
    """
    if x.dtype != torch.float32 or not x.is_cpu or not openblas_is_faster():
        x, y = x.view(-1), y.view(-1)
        return lambda: torch.dot(x, y).item()
    require_contiguous(x)
    require_operand(y.view(1, -1), x.view(1, -1).shape)
    whole, address = ctypes.c_int, ctypes.c_void_p
    function: Any = load_openblas().scipy_cblas_sdot
    function.argtypes, function.restype = [whole, address, whole, address, whole], ctypes.c_float
    step = whole(1)
    return partial(function, whole(x.numel()), address(x.data_ptr()), step, address(y.data_ptr()), step)


def row_sums_call(matrix: Tensor, out: Tensor) -> Call:
    """Return the call that writes the sum of every row of a matrix without gaps; both must outlive it.

    OpenBLAS's product with a vector of ones takes less than half as long as torch's sum.

    >>> matrix, out = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.empty(2)
    >>> _ = row_sums_call(matrix, out)()
    >>> out.tolist()
    [3.0, 7.0]
    """
    if matrix.dtype != torch.float32 or not matrix.is_cpu or not openblas_is_faster():
        return partial(torch.sum, matrix, 1, out=out)
    require_contiguous(matrix, dimensions=2)
    require_operand(out.view(1, -1), torch.Size((1, len(matrix))))
    whole, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function: Any = load_openblas().scipy_cblas_sgemv
    function.argtypes = [whole] * 4 + [real, address, whole, address, whole, real, address, whole]
    function.restype = None
    rows, columns = matrix.shape
    return partial(
        function, whole(ROW_MAJOR), whole(NO_TRANSPOSE), whole(rows), whole(columns), real(1.0), address(matrix.data_ptr()),
        whole(columns), address(cached_ones(columns).data_ptr()), whole(1), real(0.0), address(out.data_ptr()), whole(1),
    )  # fmt: skip


def broadcast_call(column: Tensor, out: Tensor) -> Call:
    """Return the call that writes a column [rows, 1] into all columns of a matrix; both must outlive it.

    OpenBLAS's product with a row of ones takes less than half as long as torch's copy, whose code has left the cache.

    >>> column, out = torch.tensor([[1.0], [2.0]]), torch.empty(2, 3)
    >>> _ = broadcast_call(column, out)()
    >>> out.tolist()
    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    if out.dtype != torch.float32 or not out.is_cpu or not openblas_is_faster():
        return partial(out.copy_, column.expand_as(out))
    call = sgemm()
    assert call is not None
    row = cached_ones(out.shape[1])
    require_operand(row[None], second_operand_shape(out, column))
    return partial(call, *gemm_arguments(out, column, row.data_ptr()))


@cache
def cached_ones(count: int) -> Tensor:
    """Return so many ones, which stay where they are."""
    return torch.ones(count, dtype=torch.float32)


def multiply_strided(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write a b (+ bias) of two float32 matrices, however they lie; rows of `out` are without gaps."""
    if bias is not None:
        out.copy_(bias)
    (a, turn_a), (b, turn_b) = contiguous_or_transposed(a), contiguous_or_transposed(b)
    return gemm(out, a, b, turn_a, turn_b, add=bias is not None)


def contiguous_or_transposed(matrix: Tensor) -> tuple[Tensor, bool]:
    """Return a matrix or its transpose, which of them has no gaps (else a copy), and whether it is turned.

    >>> [contiguous_or_transposed(m)[1] for m in (torch.ones(2, 3), torch.ones(2, 3).t(), torch.ones(1, 3).expand(2, 3))]
    [False, True, False]
    """
    if not matrix.is_contiguous() and (turned := matrix.t()).is_contiguous():
        return turned, True
    return matrix.contiguous(), False
