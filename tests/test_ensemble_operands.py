"""What is handed to a matrix library by address: it checks nothing, so a misfit must be refused before the call."""

import ast
from pathlib import Path

import pytest
import torch

import initlab
from initlab.ensemble.cpu import openblas
from initlab.ensemble.matmul import multiply

SOURCE = Path(initlab.__file__).parent


def zeros(*shape):
    return torch.zeros(shape)


MISFITS = {
    "inner": lambda: openblas.gemm_call(zeros(4, 6), zeros(4, 5), zeros(7, 6)),
    "rows": lambda: openblas.gemm_call(zeros(4, 6), zeros(3, 5), zeros(5, 6)),
    "columns": lambda: openblas.gemm_call(zeros(4, 6), zeros(4, 5), zeros(5, 8)),
    "turned": lambda: openblas.gemm_call(zeros(4, 6), zeros(4, 5), zeros(5, 6), turn_b=True),
    "first turned": lambda: openblas.gemm_call(zeros(4, 6), zeros(4, 5), zeros(5, 6), turn_a=True),
    "in pieces": lambda: openblas.gemm_call(zeros(4000, 100), zeros(4000, 90), zeros(80, 100)),
    "gaps in the second": lambda: openblas.gemm_call(zeros(4, 6), zeros(4, 5), zeros(5, 12)[:, ::2]),
    "gaps in the result": lambda: openblas.gemm_call(zeros(4, 12)[:, ::2], zeros(4, 5), zeros(5, 6)),
    "expanded": lambda: openblas.gemm_call(zeros(4, 6), zeros(1, 5).expand(4, 5), zeros(5, 6)),
    "another dtype": lambda: openblas.gemm_call(zeros(4, 6), zeros(4, 5), zeros(5, 6).double()),
    "meta": lambda: openblas.gemm_call(zeros(4, 6), zeros(4, 5), torch.zeros(5, 6, device="meta")),
    "vectors": lambda: openblas.gemm_call(zeros(4), zeros(4, 5), zeros(5)),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_refused_before_the_library_is_called(case, monkeypatch):
    # On processors without OpenBLAS too: nothing of it is asked for before the operands are checked.
    monkeypatch.setattr(openblas, "sgemm", lambda: pytest.fail("the library was asked for"))
    monkeypatch.setattr(openblas, "sgemm_batch", lambda: pytest.fail("the library was asked for"))
    with pytest.raises((ValueError, RuntimeError)):
        MISFITS[case]()


@pytest.mark.skipif(openblas.sgemm() is None, reason="there is no OpenBLAS here, or not for this processor")
def test_operands_that_come_later_are_checked_when_they_come():
    out, a = zeros(4, 6), torch.ones(4, 5)  # they outlive the call
    call = openblas.batch_gemm_call(out, a)
    for wrong in (zeros(5, 7), zeros(6, 6), zeros(5, 12)[:, ::2], zeros(5, 6).double()):
        with pytest.raises(ValueError, match=r"product needs|matrix library"):
            call(wrong)
    call(torch.ones(5, 6))
    assert bool((out == 5).all())


@pytest.mark.skipif(not openblas.openblas_is_faster(), reason="OpenBLAS is not used on this processor")
def test_vectors_are_checked_too():
    for wrong in (
        lambda: openblas.dot_call(zeros(5), zeros(6)),
        lambda: openblas.row_sums_call(zeros(4, 5), zeros(5)),
        lambda: openblas.row_sums_call(zeros(4, 10)[:, ::2], zeros(4)),
        lambda: openblas.broadcast_call(zeros(5, 1), zeros(4, 6)),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            wrong()


@pytest.mark.parametrize("width", [64, 1024])
def test_members_whose_input_does_not_fit_are_refused_whatever_way_they_are_multiplied(width):
    # 1024 is past the size from which OpenBLAS takes each member, 64 below it.
    with pytest.raises((ValueError, RuntimeError), match=r"must match|multipl|[Ee]xpected size"):
        multiply(zeros(2, 64, width), zeros(2, width + 16, 64))


UNCHECKED = {"as_strided", "as_strided_", "_weight_norm", "_weight_norm_interface", "set_", "frombuffer", "CDLL"}
"""What believes the sizes that it is told."""

USED = {
    ("ensemble/cpu/openblas.py", "CDLL"),
    ("system/parent_process.py", "CDLL"),  # asks the kernel for a signal: it is given numbers
    ("training/threads.py", "CDLL"),  # asks the C library to keep memory: it is given numbers
    ("inspection/parametrized.py", "_weight_norm"),  # behind `_disagreement`
    ("data/idx.py", "frombuffer"),  # checks the buffer's length itself
    ("system/random_streams.py", "frombuffer"),
    ("theory/interpolation.py", "frombuffer"),  # numpy's, which checks
    ("report/encoding.py", "frombuffer"),
    ("records/reader.py", "frombuffer"),  # numpy's, which checks
    ("config/job_values.py", "set_"),  # no tensor's
}


def test_nothing_else_believes_the_sizes_that_it_is_told():
    found = set()
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in UNCHECKED:
                found.add((path.relative_to(SOURCE).as_posix(), node.attr))
    assert found == USED
