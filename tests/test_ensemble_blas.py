"""Products by OpenBLAS, where torch's library is slower: right, alike whoever asks, and nobody else's business."""

import ctypes
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from initlab.ensemble import matmul
from initlab.ensemble.cpu import openblas, tanh

wide = pytest.mark.skipif(openblas.sgemm() is None, reason="OpenBLAS has no code for this machine, or is not installed")
SHAPES = [(1, 1, 1), (3, 1, 5), (1, 7, 2), (10, 128, 128), (128, 784, 96), (65, 33, 17), (128, 128, 10), (300, 500, 70)]
SHAPES += [(128, 128, 128), (257, 250, 121), (200, 128, 129)]  # in pieces, where the second is not turned


@wide
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_a_product_is_the_product(shape, turn_a, turn_b, add):
    rows, inner, columns = shape
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, inner, generator=draw), torch.randn(inner, columns, generator=draw)
    out = torch.randn(rows, columns, generator=draw) if add else torch.full((rows, columns), torch.nan)
    expected = a.double() @ b.double() + (out.double() if add else 0)
    found = openblas.gemm(
        out, *(m.t().contiguous() if turn else m for m, turn in ((a, turn_a), (b, turn_b))), turn_a, turn_b, add
    )
    # Rounding of a sum of `inner` products, each of size 1: far below the sixth digit's error of a wrong entry.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * (inner + 1))


@wide
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_a_bound_product_reads_what_is_there_when_it_is_called(shape, turn_b, add, monkeypatch):
    rows, inner, columns = shape
    draw = torch.Generator().manual_seed(0)
    first, later = (torch.randn(rows, inner, generator=draw) for _ in "ab")
    batches = [torch.randn(*((columns, inner) if turn_b else (inner, columns)), generator=draw) for _ in "abc"]
    a, b, out = first.clone(), batches[0].clone(), torch.empty(rows, columns)
    call, fed = openblas.gemm_call(out, a, b, turn_b=turn_b, add=add), openblas.batch_gemm_call(out, a, turn_b, add)
    for values, batch in itertools.product((first, later), batches):
        a.copy_(values)
        b.copy_(batch)
        expected = openblas.gemm(torch.ones(rows, columns), values, batch, turn_b=turn_b, add=add)
        out.fill_(1)
        call()
        assert torch.equal(out, expected)
        with monkeypatch.context() as changed:
            changed.setattr(openblas, "sgemm_batch", lambda: None)  # what is fed is multiplied in one piece
            expected = openblas.gemm(torch.ones(rows, columns), values, batch, turn_b=turn_b, add=add)
        out.fill_(1)
        fed(batch)
        assert torch.equal(out, expected)


@wide
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("rows", [100, 120, 121, 143])
def test_pieces_are_those_of_the_whole(rows, turn_a):
    """To the bit, as OpenBLAS's code for small products takes them either way."""
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, 90, generator=draw), torch.randn(90, 130, generator=draw)
    found = openblas.gemm(torch.empty(rows, 130), a.t().contiguous() if turn_a else a, b, turn_a)
    for begin in range(0, rows, openblas.PIECE_ROWS):
        piece = a[begin : begin + openblas.PIECE_ROWS]
        alone = openblas.gemm(torch.empty(len(piece), 130), piece.t().contiguous() if turn_a else piece, b, turn_a)
        assert torch.equal(found[begin : begin + openblas.PIECE_ROWS], alone)


@wide
def test_a_library_without_several_products_by_one_call_takes_the_whole(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 128, generator=draw), torch.randn(128, 128, generator=draw)
    in_pieces = openblas.gemm(torch.empty(128, 128), a, b)
    monkeypatch.setattr(openblas, "sgemm_batch", lambda: None)
    torch.testing.assert_close(openblas.gemm(torch.empty(128, 128), a, b), in_pieces, rtol=0, atol=1e-4)


@wide
def test_matrices_may_lie_as_they_like():
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(12, 20, generator=draw)
    row = torch.randn(1, 9, generator=draw)
    cases = [
        (whole[:, :9], whole[:9]),
        (whole[::2], whole.t()[:, ::2]),
        (whole.t(), whole),
        (row.expand(4, 9), whole[:9, 3:7]),
        (whole[:, 2:3], whole[5:6]),
        (whole[3:4], whole[:1, :].t()),
    ]
    for a, b in cases:
        bias = torch.randn(b.shape[1], generator=draw)
        found = openblas.multiply_strided(a, b, torch.empty(len(a), b.shape[1]), bias)
        torch.testing.assert_close(found, a @ b + bias, rtol=1e-5, atol=1e-5)


@wide
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_through(value):
    for size in (2, 16, 130):
        a, b = torch.ones(size, size), torch.zeros(size, size)
        a[0, 1] = value
        found = openblas.gemm(torch.zeros(size, size), a, b)
        assert found[0].isnan().all()
        assert (found[1:] == 0).all()


@wide
def test_bits_depend_on_no_address_and_no_neighbour_at_work():
    draw = torch.Generator().manual_seed(0)
    memory = torch.randn(3, 400_000, generator=draw)
    for rows, inner, columns in SHAPES:
        placed = []
        for shift in (0, 1, 7, 16):
            a, b = (
                m[shift : shift + p * q].view(p, q)
                for m, p, q in ((memory[0].roll(shift), rows, inner), (memory[1].roll(shift), inner, columns))
            )
            placed.append(openblas.gemm(memory[2][shift : shift + rows * columns].view(rows, columns), a, b).clone())
        assert all(torch.equal(one, placed[0]) for one in placed)
    for inner in (784, 128):
        a, b = torch.randn(128, inner, generator=draw), torch.randn(inner, 128, generator=draw)
        expected = openblas.gemm(torch.empty(128, 128), a, b).clone()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, a=a, b=b: openblas.gemm(torch.empty(128, 128), a, b), range(400)))
        assert all(torch.equal(one, expected) for one in found)


OTHERS = """
import hashlib, os
{before}
import numpy as np, scipy.linalg.blas
{after}
a = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
found = a @ a.T, scipy.linalg.blas.sgemm(1.0, a, a, trans_b=True), np.linalg.svd(a)[1]
print(*(hashlib.sha256(each.tobytes()).hexdigest() for each in found), "OPENBLAS_CORETYPE" in os.environ)
"""


@wide
def test_numpy_and_scipy_multiply_as_they_would_without_it():
    """Loaded before theirs or after: their code for this processor is another, and so would their bits be."""
    ours = "from initlab.ensemble import blas; assert blas.sgemm() is not None"
    found = []
    for loads in ({"before": "", "after": ""}, {"before": ours, "after": ""}, {"before": "", "after": ours}):
        command = [sys.executable, "-c", OTHERS.format(**loads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 16, 33, 1000, 133_770, 10**6])
def test_a_sum_of_squares_is_that_of_what_is_there_when_it_is_asked(count, dtype):
    x = torch.zeros(count, dtype=dtype)
    square = openblas.dot_call(x, x)
    assert square() == 0.0
    x.copy_(torch.randn(count, generator=torch.Generator().manual_seed(count)))
    exact = sum(value * value for value in x.tolist())
    # float32 rounds each sum by 6e-8 at most, and several accumulators share a million: far below what is allowed.
    assert square() == pytest.approx(exact, rel=2e-5 if dtype == torch.float32 else 1e-12)
    assert square() == square()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (10, 128), (128, 128), (33, 65), (300, 517)])
def test_row_sums_are_those_of_the_rows_whatever_was_there(shape, dtype):
    draw = torch.Generator().manual_seed(0)
    matrix, out = torch.empty(shape, dtype=dtype), torch.full(shape[:1], torch.nan, dtype=dtype)
    add = openblas.row_sums_call(matrix, out)
    matrix.copy_(torch.randn(shape, generator=draw))
    add()
    # Each of the sums adds at most 517 numbers below 6, rounded by 6e-8 of the sum so far.
    torch.testing.assert_close(out.double(), matrix.double().sum(1), rtol=0, atol=1e-4 if dtype == torch.float32 else 0)
    matrix[0, 0] = torch.nan
    add()
    assert out.isnan().tolist() == [True] + [False] * (shape[0] - 1)
    matrix[0, 0] = 1.0
    add()
    assert not out.isnan().any()


@pytest.mark.parametrize(("value", "expected"), [(1e30, "inf"), (float("inf"), "inf"), (float("nan"), "nan")])
def test_a_sum_of_squares_that_is_not_finite_says_so(value, expected):
    x = torch.ones(100)
    x[37] = value
    assert str(openblas.dot_call(x, x)()) == expected


@wide
def test_one_thread_computes_it():
    openblas.sgemm()
    loaded = Path("/proc/self/maps").read_text().splitlines()
    library = next(line.split()[-1] for line in loaded if "scipy_openblas32/lib/libscipy_openblas" in line)
    assert ctypes.CDLL(library).scipy_openblas_get_num_threads() == 1


@pytest.mark.parametrize("lacks", ["the package", "the vectors"])
def test_a_machine_without_it_takes_torchs(lacks, monkeypatch):
    if lacks == "the package":
        monkeypatch.setattr(openblas, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for found in (openblas.load_openblas, openblas.sgemm, openblas.openblas_is_faster):
        found.cache_clear()
    try:
        assert openblas.sgemm() is None
        assert not openblas.openblas_is_faster()
        a = torch.randn(2, 5, 3)
        assert torch.equal(matmul.multiply(a, a.transpose(1, 2)), torch.bmm(a, a.transpose(1, 2)))
        assert openblas.dot_call(torch.tensor([3.0]), torch.tensor([4.0]))() == 12.0
    finally:
        monkeypatch.undo()
        for found in (openblas.load_openblas, openblas.sgemm, openblas.openblas_is_faster):
            found.cache_clear()


RULE = """
import ctypes
from pathlib import Path
from initlab.ensemble import blas, tanh
blas.PROCESSOR = Path({described!r})
def loaded():
    paths = (line.split()[-1] for line in open("/proc/self/maps"))
    path = next(path for path in paths if "scipy_openblas32/lib/libscipy_openblas" in path)
    name = ctypes.CDLL(path).scipy_openblas_get_corename
    name.restype = ctypes.c_char_p
    return name().decode()
print(blas.openblas_pays(), tanh.slow_here(), blas.sgemm() and loaded())
"""


@wide
@pytest.mark.parametrize(
    ("vendor", "family", "expected"),
    [
        ("AuthenticAMD", 23, "False True SkylakeX"),
        ("AuthenticAMD", 25, "True True SkylakeX"),
        ("AuthenticAMD", 26, "True True SkylakeX"),
        ("AuthenticAMD", 27, "True True SkylakeX"),
        ("GenuineIntel", 6, "False False SkylakeX"),
        ("GenuineIntel", 26, "False False SkylakeX"),
        (None, None, "False False SkylakeX"),
    ],
)
def test_the_processor_decides(vendor, family, expected, tmp_path):
    described = tmp_path / "cpuinfo"
    if vendor:
        described.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n" * 2)
    done = subprocess.run(
        [sys.executable, "-c", RULE.format(described=str(described))], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == expected, done.stderr


EXAMPLES = """
import doctest
from initlab.ensemble import blas, tanh
print(blas.openblas_pays(), blas.sgemm() is None, tanh.slow_here())
print(doctest.testmod(blas).failed, doctest.testmod(tanh).failed)
"""


@pytest.mark.parametrize("lacks", [{"INITLAB_FAST_CPU": "0"}, {"ATEN_CPU_CAPABILITY": "avx2"}])
def test_examples_hold_on_every_processor(lacks):
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES], env={**os.environ, **lacks}, capture_output=True, text=True, check=True
    )
    processor, failures = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert processor.startswith("False True"), done.stdout
    assert "INITLAB_FAST_CPU" not in lacks or processor == "False True False"
    assert failures == "0 0", done.stdout


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("INITLAB_ONE", "mine")
    found = []
    with pytest.raises(OSError, match="nowhere"), openblas.set_environment(INITLAB_ONE="1", INITLAB_TWO="2"):
        found.append(ctypes.CDLL(f"/nowhere/{os.environ['INITLAB_ONE']}{os.environ['INITLAB_TWO']}"))
    assert not found
    assert os.environ["INITLAB_ONE"] == "mine"
    assert "INITLAB_TWO" not in os.environ


@pytest.mark.parametrize("narrow", [False, True])
def test_tanh_is_tanh_wherever_an_entry_lies(narrow, monkeypatch):
    monkeypatch.setattr(tanh, "numpy_tanh_is_faster", lambda: narrow)
    x = torch.cat([torch.linspace(-12, 12, 10_001), torch.logspace(-30, -1, 1001), torch.tensor([0.0, torch.inf])])
    expected = x.double().tanh()
    found = tanh.fast_tanh(x)
    assert ((found - expected).abs() <= 1.2e-7 * expected.abs()).all()
    in_place = x.clone()
    tanh.tanh_call(in_place)()
    assert torch.equal(in_place, found)
    for start in (1, 5, 13):
        assert torch.equal(tanh.fast_tanh(x[start : start + 37].clone()), found[start : start + 37])
        assert torch.equal(tanh.fast_tanh(x[start:]), found[start:])
    assert torch.equal(tanh.fast_tanh(x[1:10_001].view(100, 100).t()), found[1:10_001].view(100, 100).t())
    assert tanh.fast_tanh(torch.tensor([torch.nan])).isnan().all()
    z = torch.linspace(-3, 3, 50, requires_grad=True)
    (slope,) = torch.autograd.grad(tanh.fast_tanh(z).sum(), z)
    np.testing.assert_allclose(slope, 1 - np.tanh(np.linspace(-3, 3, 50)) ** 2, rtol=1e-4, atol=1e-6)
