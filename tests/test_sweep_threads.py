"""How many threads torch has for networks that train together."""

import pytest
import torch

from initlab.cli.train import run_train
from initlab.config.compose import compose_config
from initlab.sweep.threads import pick_threads, several_threads_are_faster, use_suitable_threads


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    """A process that torch gave four threads, and whose user said nothing."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def config(*overrides: str):
    return compose_config(["device=cpu", *overrides])


LONG = ("train.steps=100000",)


@pytest.mark.parametrize(
    ("overrides", "threads"),
    [
        ((), 1),
        (("depth=20",), 1),
        (("model=cnn",), 1),
        (("width=1024",), 4),
        (LONG, 4),
        (("width=8", *LONG), 1),  # not even a long one gains by operations of microseconds
        (("threads=3",), 3),
        (("threads=2", "width=1024"), 2),
    ],
)
def test_a_lone_network_has_one_thread_unless_it_is_large_or_trained_long(overrides, threads):
    assert pick_threads([config(*overrides)], 4) == threads


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_said_by_the_environment_stays(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert pick_threads([config()], 4) == 4
    assert pick_threads([config("threads=2")], 4) == 2


def test_networks_that_train_together_share_all_threads():
    assert pick_threads([config(), config("seed=1")], 4) == 4


def test_a_process_of_one_thread_gets_no_more():
    assert pick_threads([config("width=1024")], 1) == 1


def test_the_choice_holds_for_the_training_alone():
    with use_suitable_threads([config()]):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    seen = []
    with pytest.raises(ZeroDivisionError), use_suitable_threads([config("threads=2")]):
        seen.append(torch.get_num_threads() / 0)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("arguments", [[], ["-m", "sweep.name=s", "sweep.max_group=1", "seed=0,1"]])
@pytest.mark.parametrize(("told", "threads"), [((), 1), (("threads=2",), 2)])
def test_the_command_trains_by_them(tmp_path, monkeypatch, arguments, told, threads):
    from initlab.training import loop

    monkeypatch.chdir(tmp_path)
    seen = []
    real = loop.ThreadTeam
    monkeypatch.setattr(loop, "ThreadTeam", lambda *given: seen.append(torch.get_num_threads()) or real(*given))
    quick = ["depth=1", "width=4", "train.steps=3", "data=gaussian", "device=cpu", "hydra.launcher.executor=inline"]
    assert run_train([*arguments, *quick, *told]) == 0
    assert set(seen) == {threads}
    assert torch.get_num_threads() == 4


def test_a_users_own_model_is_not_called_to_find_out(tmp_path, monkeypatch):
    (tmp_path / "counted.py").write_text(
        "import torch\n"
        "calls = []\n"
        "def model(depth, width, act, input_shape, classes):\n"
        "    class Net(torch.nn.Linear):\n"
        "        def forward(self, x):\n"
        "            calls.append(1)\n"
        "            return super().forward(x.flatten(1))\n"
        "    return Net(784, classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import counted

    assert not several_threads_are_faster(config("model=custom", "model.target=counted:model"))
    assert counted.calls == []
