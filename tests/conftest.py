"""One thread for every test and for what it starts: results do not depend on it, and workers do not fight for cores."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_configure():
    # Started in the background, a shell makes its children deaf to Ctrl-C; what the tests start must hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
