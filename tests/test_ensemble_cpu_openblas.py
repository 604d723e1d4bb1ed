"""Products by OpenBLAS, where torch's library is slower: right, the same for every caller, refused on a misfit."""

import ast
import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import initlab
from initlab.ensemble import matmul
from initlab.ensemble.cpu import fast_product, openblas

has_openblas = pytest.mark.skipif(openblas.sgemm() is None, reason="OpenBLAS is not installed, or not for this machine")
SHAPES = [(1, 1, 1), (3, 1, 5), (1, 7, 2), (10, 128, 128), (128, 784, 96), (65, 33, 17), (128, 128, 10), (300, 500, 70)]
SHAPES += [(128, 128, 128), (257, 250, 121), (200, 128, 129)]


def gemm(out: Tensor, a: Tensor, b: Tensor, *options: bool) -> Tensor:
    openblas.gemm(*map(openblas.as_matrix, (out, a, b)), *options)
    return out


@has_openblas
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_a_product_is_the_product(shape, transpose_a, transpose_b, add):
    rows, inner, columns = shape
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, inner, generator=draw), torch.randn(inner, columns, generator=draw)
    out = torch.randn(rows, columns, generator=draw) if add else torch.full((rows, columns), torch.nan)
    expected = a.double() @ b.double() + (out.double() if add else 0)
    first, second = (m.t().contiguous() if turn else m for m, turn in ((a, transpose_a), (b, transpose_b)))
    gemm(out, first, second, transpose_a, transpose_b, add)
    # Rounding of a sum of `inner` products, each of size 1: far below the sixth digit's error of a wrong entry.
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6 * (inner + 1))


WHOLE, ROW = torch.randn(12, 20, generator=torch.Generator().manual_seed(0)), torch.arange(9.0)[None]


@has_openblas
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (WHOLE[:, :9], WHOLE[:9]),
        (WHOLE[::2], WHOLE.t()[:, ::2]),
        (WHOLE.t(), WHOLE),
        (ROW.expand(4, 9), WHOLE[:9, 3:7]),
        (WHOLE[:, 2:3], WHOLE[5:6]),
        (WHOLE[3:4], WHOLE[:1, :].t()),
    ],
)
def test_strides_of_operands_do_not_matter(a, b):
    bias, out = torch.randn(b.shape[1]), torch.empty(len(a), b.shape[1])
    openblas.multiply_strided(a, b, bias, out)
    torch.testing.assert_close(out, a @ b + bias, rtol=1e-5, atol=1e-5)


@has_openblas
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [2, 16, 130])
def test_nonfinite_values_are_propagated(value, size):
    a, b = torch.ones(size, size), torch.zeros(size, size)
    a[0, 1] = value
    out = gemm(torch.zeros(size, size), a, b)
    assert out[0].isnan().all()
    assert (out[1:] == 0).all()


@has_openblas
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_depend_on_no_address(shape):
    rows, inner, columns = shape
    memory, placed = torch.randn(3, 400_000, generator=torch.Generator().manual_seed(0)), []
    for shift in (0, 1, 7, 16):
        a, b = (
            m[shift : shift + p * q].view(p, q)
            for m, p, q in ((memory[0].roll(shift), rows, inner), (memory[1].roll(shift), inner, columns))
        )
        placed.append(gemm(memory[2][shift : shift + rows * columns].view(rows, columns), a, b).clone())
    assert all(torch.equal(one, placed[0]) for one in placed)


@has_openblas
@pytest.mark.parametrize("inner", [784, 128])
def test_bits_depend_on_no_thread_beside(inner):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, inner, generator=draw), torch.randn(inner, 128, generator=draw)
    expected = gemm(torch.empty(128, 128), a, b)
    with ThreadPoolExecutor(4) as pool:
        products = list(pool.map(lambda _: gemm(torch.empty(128, 128), a, b), range(400)))
    assert all(torch.equal(product, expected) for product in products)


OTHERS = """
import hashlib, os
{before}
import numpy as np, scipy.linalg.blas
{after}
a = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
found = a @ a.T, scipy.linalg.blas.sgemm(1.0, a, a, trans_b=True), np.linalg.svd(a)[1]
print(*(hashlib.sha256(each.tobytes()).hexdigest() for each in found), "OPENBLAS_CORETYPE" in os.environ)
"""


@has_openblas
def test_products_of_numpy_and_scipy_do_not_change():
    """Loaded before theirs or after: their code for this processor is another, and so would their bits be."""
    ours = "from initlab.ensemble.cpu import openblas; assert openblas.sgemm() is not None"
    printed = []
    for loads in ({"before": "", "after": ""}, {"before": ours, "after": ""}, {"before": "", "after": ours}):
        command = [sys.executable, "-c", OTHERS.format(**loads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1] == printed[2]


@has_openblas
def test_one_thread_computes_a_product():
    loaded = Path("/proc/self/maps").read_text().splitlines()
    library = next(line.split()[-1] for line in loaded if "scipy_openblas32/lib/libscipy_openblas" in line)
    assert ctypes.CDLL(library).scipy_openblas_get_num_threads() == 1


def test_private_interface_is_there():
    """What an upgrade of scipy-openblas32 could take away: training on AMD processors would take twice the time."""
    package = pytest.importorskip("scipy_openblas32")
    libraries = list(Path(package.__file__).parent.glob("lib/libscipy_openblas*.so"))
    assert libraries, "scipy-openblas32 has no lib/libscipy_openblas*.so any more: see ensemble/cpu/openblas.py"
    for name in ("scipy_cblas_sgemm", "scipy_openblas_get_corename"):
        assert hasattr(ctypes.CDLL(str(libraries[0])), name), f"scipy-openblas32 has no {name} any more"


@pytest.fixture
def load_again():
    cached = (openblas.load_openblas, openblas.sgemm, openblas.openblas_is_faster)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize("missing", ["package", "vectors", "function", "name of the core"])
@pytest.mark.usefixtures("load_again")
def test_without_openblas_torch_multiplies(missing, monkeypatch):
    if missing == "package":
        monkeypatch.setattr(openblas, "find_spec", lambda name: None)
    elif missing == "vectors":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    elif missing == "function":
        monkeypatch.setattr(openblas, "load_openblas", object)
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda path: object())
    assert openblas.sgemm() is None
    assert not openblas.openblas_is_faster()
    a = torch.randn(2, 128, 128)
    assert fast_product(a, a) is None
    assert torch.equal(matmul.multiply(a, a.transpose(1, 2)), torch.bmm(a, a.transpose(1, 2)))


def test_small_products_and_other_dtypes_are_torchs(monkeypatch):
    monkeypatch.setattr(openblas, "openblas_is_faster", lambda: True)
    monkeypatch.setenv("INITLAB_FAST_CPU", "1")
    large, small = torch.empty(2, 128, 128), torch.empty(2, 8, 8)
    assert fast_product(large, large) is openblas.multiply_strided
    assert fast_product(small, small) is None
    assert fast_product(large.double(), large.double()) is None
    assert fast_product(large.to("meta"), large.to("meta")) is None
    monkeypatch.setenv("INITLAB_FAST_CPU", "0")
    assert fast_product(large, large) is None


@pytest.mark.usefixtures("load_again")
def test_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    seen = []

    def refuse(path):
        seen.append({name: os.environ.get(name) for name in openblas.SETTINGS})
        raise OSError("no such library")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(OSError, match="no such library"):
        openblas.load_openblas()
    assert seen == [openblas.SETTINGS]
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7"
    assert "OPENBLAS_CORETYPE" not in os.environ


# ---- operands: BLAS reads and writes by address and checks nothing, so a misfit must be refused before the call


def zeros(*shape):
    return torch.zeros(shape)


MISFITS = {
    "inner": lambda: gemm(zeros(4, 6), zeros(4, 5), zeros(7, 6)),
    "rows": lambda: gemm(zeros(4, 6), zeros(3, 5), zeros(5, 6)),
    "columns": lambda: gemm(zeros(4, 6), zeros(4, 5), zeros(5, 8)),
    "second transposed": lambda: gemm(zeros(4, 6), zeros(4, 5), zeros(5, 6), False, True),
    "first transposed": lambda: gemm(zeros(4, 6), zeros(4, 5), zeros(5, 6), True),
    "second not contiguous": lambda: gemm(zeros(4, 6), zeros(4, 5), zeros(5, 12)[:, ::2]),
    "result not contiguous": lambda: gemm(zeros(4, 12)[:, ::2], zeros(4, 5), zeros(5, 6)),
    "expanded": lambda: gemm(zeros(4, 6), zeros(1, 5).expand(4, 5), zeros(5, 6)),
    "another dtype": lambda: gemm(zeros(4, 6), zeros(4, 5), zeros(5, 6).double()),
    "meta": lambda: gemm(zeros(4, 6), zeros(4, 5), torch.zeros(5, 6, device="meta")),
    "vectors": lambda: gemm(zeros(4), zeros(4, 5), zeros(5)),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_refused_before_the_library_is_called(case, monkeypatch):
    # On processors without OpenBLAS too: it is not loaded before the operands are checked.
    monkeypatch.setattr(openblas, "sgemm", lambda: pytest.fail("the library was loaded"))
    with pytest.raises(ValueError, match=r"shapes cannot be multiplied|sgemm multiplies float32|BLAS takes contiguous"):
        MISFITS[case]()


@pytest.mark.parametrize("width", [64, 1024])
def test_members_whose_input_does_not_fit_are_refused(width):
    # 1024 is past the size from which OpenBLAS takes each member, 64 below it.
    with pytest.raises((ValueError, RuntimeError), match=r"must match|multipl|[Ee]xpected size"):
        matmul.multiply(zeros(2, 64, width), zeros(2, width + 16, 64))


UNCHECKED = {"as_strided", "as_strided_", "_weight_norm", "_weight_norm_interface", "set_", "frombuffer", "CDLL"}
USED = {
    ("ensemble/cpu/openblas.py", "CDLL"),
    ("ensemble/cpu/allocator.py", "CDLL"),  # sets the C library to keep memory: it takes numbers
    ("data/idx.py", "frombuffer"),  # checks the buffer's length itself
    ("system/random_streams.py", "frombuffer"),
    ("theory/interpolation.py", "frombuffer"),  # numpy's, which checks
    ("report/encoding.py", "frombuffer"),
    ("records/table_reader.py", "frombuffer"),  # numpy's, which checks
}


def test_functions_that_trust_sizes_are_used_in_few_places():
    source, used = Path(initlab.__file__).parent, set()
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in UNCHECKED:
                used.add((path.relative_to(source).as_posix(), node.attr))
    assert used == USED
