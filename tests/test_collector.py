"""The garbage collector rests while modules load, and works as before afterwards."""

import gc
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
