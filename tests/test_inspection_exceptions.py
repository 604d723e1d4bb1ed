"""Whose bug is it when a pass fails: initlab's own or the user's?"""

from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

import initlab
from initlab.cli.audit import audit_named_target
from initlab.cli.diagnose import run_diagnose
from initlab.diagnostics import layer_recorder
from initlab.diagnostics.trace import hooks, records
from initlab.errors import InternalError, UserError
from initlab.inspection.exceptions import initlab_frame


class Raises(nn.Module):
    """A module whose forward raises."""

    def __init__(self, error):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.error = error

    def forward(self, x):
        self.layer(x)
        if self.error is not None:
            raise self.error
        return x.view(7, 7)


def raised(work):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any: it is looked at below)
        work()
    return caught.value


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("y"), RuntimeError("z"), ZeroDivisionError(), None])
def test_what_the_users_forward_raises_is_told_as_the_users(error, capsys):
    net = Raises(error)
    found = raised(lambda: initlab.diagnose(net, torch.zeros(2, 3)))
    assert found is error or isinstance(found, UserError)  # a shape that does not fit
    assert not isinstance(found, InternalError)
    assert initlab_frame(found) is None
    told = raised(lambda: initlab.diagnose(nn.Sequential(net), torch.zeros(2, 3)))
    assert not isinstance(told, InternalError)


@pytest.mark.parametrize(
    "place",
    [(hooks.ModuleTracer, "_layer"), (hooks.ModuleTracer, "__enter__"), (records.Call, "measure_weight")],
)
def test_what_initlabs_own_code_raises_is_told_as_its_own(monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blamed_home.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 2)\n")
    # The exception must come from a file of the package, as a real bug would.
    source = "def broken(*_, **__):\n    return {}['a bug of ours']\n"
    own = {}
    exec(compile(source, str(layer_recorder.__file__), "exec"), own)
    owner, name = place
    monkeypatch.setattr(owner, name, own["broken"])
    for work in (
        lambda: initlab.diagnose(nn.Linear(3, 2), torch.zeros(2, 3)),
        lambda: run_diagnose("blamed_home:net", ["2,3"]),
    ):
        with pytest.raises(
            InternalError, match=r"KeyError in initlab/diagnostics/layer_recorder.py, line 2.*a bug of initlab"
        ):
            work()


def test_a_library_that_raises_is_the_fault_of_what_called_it(monkeypatch):
    own = {}
    source = "import pandas as pd\ndef broken(*_, **__):\n    return pd.DataFrame({'a': [1]})['b']\n"
    exec(compile(source, str(layer_recorder.__file__), "exec"), own)
    monkeypatch.setattr(records.Call, "measure_weight", own["broken"])
    with pytest.raises(InternalError, match="KeyError in initlab"):
        initlab.diagnose(nn.Linear(3, 2), torch.zeros(2, 3))
    monkeypatch.undo()

    class Reads(nn.Linear):
        def forward(self, x):
            pd.DataFrame({"a": [1]})["b"]
            return super().forward(x)

    found = raised(lambda: initlab.diagnose(Reads(3, 2), torch.zeros(2, 3)))
    assert isinstance(found, KeyError)


def test_what_is_built_or_made_by_the_user_is_the_users_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "built_home.py").write_text(
        "import initlab\nfrom torch import nn\n"
        "def net(size):\n    return nn.Linear(size, 2)\n"
        "def broken():\n    return {}['mine']\n"
        "def uses():\n    net = nn.Linear(3, 2)\n    initlab.initialize_(net, 'he_normal')\n    return net\n"
    )
    for target, said in (("net", "TypeError"), ("broken", "KeyError: 'mine' in built_home.py")):
        for build in (partial(run_diagnose, shapes=["2,3"]), partial(audit_named_target, promise="zeros")):
            with pytest.raises(UserError, match=said):
                build(f"built_home:{target}")
    own = {}
    exec(compile("def broken(*_, **__):\n    return {}['ours']\n", str(layer_recorder.__file__), "exec"), own)
    monkeypatch.setattr("initlab.initialize.fill.frame_from_tasks", own["broken"])
    for build in (partial(run_diagnose, shapes=["2,3"]), partial(audit_named_target, promise="zeros")):
        with pytest.raises(InternalError, match="KeyError in initlab"):
            build("built_home:uses")


def test_a_layer_that_does_not_fit_and_a_loss_that_raises_are_no_bugs_of_ours():
    with pytest.raises(UserError, match="cannot take a batch"):
        initlab.diagnose(nn.Sequential(nn.Linear(4, 3)), torch.zeros(2, 3))
    found = raised(lambda: initlab.diagnose(nn.Linear(3, 2), torch.zeros(2, 3), loss=lambda output: output["logits"]))
    assert not isinstance(found, (InternalError, UserError))
    found = raised(
        lambda: initlab.diagnose(
            nn.Linear(3, 2), torch.zeros(2, 3), targets=torch.zeros(9), loss=nn.functional.cross_entropy
        )
    )
    assert not isinstance(found, InternalError)


class InPlace(nn.Module):
    """Its backward pass fails: a value that it needs was overwritten."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(x).exp()
        z = y * 2
        y.detach().mul_(2)
        return z + y


def test_what_the_users_backward_pass_raises_is_the_users():
    found = raised(lambda: initlab.diagnose(InPlace(), torch.zeros(2, 3)))
    assert "inplace" in str(found)
    assert not isinstance(found, InternalError)


def test_out_of_memory_is_no_bug(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(hooks.ModuleTracer, "_layer", full)
    assert isinstance(raised(lambda: initlab.diagnose(nn.Linear(3, 2), torch.zeros(2, 3))), torch.OutOfMemoryError)
