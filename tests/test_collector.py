"""The garbage collector rests while modules load, and works as before afterwards."""

import gc
import signal
import subprocess
import sys

import pytest

from initlab.collector import modules_loading


@pytest.fixture(autouse=True)
def _as_it_was():
    before = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("before", [True, False])
def test_it_rests_for_the_while_alone(before):
    (gc.enable if before else gc.disable)()
    with modules_loading():
        assert not gc.isenabled()
    assert gc.isenabled() == before


def test_a_module_that_cannot_be_loaded_leaves_it_at_work():
    gc.enable()
    with pytest.raises(ModuleNotFoundError), modules_loading():
        import nowhere_to_be_found  # noqa: F401
    assert gc.isenabled()


ENDING = """
import gc
from initlab.collector import modules_loading

class Node:
    def __init__(self, name):
        self.name, self.self = name, self

    def __del__(self, say=print):
        say(self.name)

with modules_loading():
    loaded = Node("loaded")
del loaded
gc.collect()
later = Node("later")
del later
gc.collect()
print("the end")
"""


def test_what_was_loaded_is_left_in_peace_to_the_end_and_what_comes_later_is_not():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert done.stdout.split() == ["later", "the", "end"], done.stdout + done.stderr


def test_where_somebody_counts_what_is_left_behind_nothing_is():
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules['triton'] = None\n{ENDING}"], capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:3] == ["later", "the end", "loaded"], done.stdout + done.stderr


def load_and_be_interrupted(then):
    """Load what takes Ctrl-C for a failure of its own."""
    with modules_loading():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if then is not None:
                raise then from None


@pytest.mark.parametrize("then", [None, ImportError("it cannot be loaded"), SystemError("no result")])
def test_ctrl_c_is_that_whatever_a_module_makes_of_it(then):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load_and_be_interrupted(then)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_module_fails_by_itself_is_its_own():
    with pytest.raises(ImportError, match="of its own"), modules_loading():
        raise ImportError("of its own")


def test_who_hears_ctrl_c_already_goes_on_hearing():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with modules_loading():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]
