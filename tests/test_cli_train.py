"""The command line by running it: what is refused and how, exit codes, what is left behind, and what is shown."""

import gzip
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from initlab.cli.invocation import INVOCATION, InvocationState
from initlab.cli.train import run_train
from initlab.data.images import FILES, SHIPPED
from initlab.system import terminal

ROOT = Path(__file__).parents[1]
TRAIN = [sys.executable, str(ROOT / "train.py")]
QUICK = ["train.steps=2", "depth=1", "width=8", "log.histograms=0", "log.tensorboard=false"]


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Every test works in an empty directory, with no data but what is shipped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "no-cache"))
    monkeypatch.delenv("INITLAB_DATA", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    # A busy machine takes long enough for a line of progress, which is on standard error too.
    monkeypatch.setattr(terminal, "PLAIN_INTERVAL", math.inf)


def tree(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.fixture
def refused(capsys):
    """Run the door with what it must refuse; return the sentence, the only thing that is said or left behind."""

    def run(*arguments: str) -> str:
        before = tree(Path.cwd())
        code = run_train(list(arguments))
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert tree(Path.cwd()) == before
        (line,) = err.splitlines()
        assert line.startswith("initlab: ")
        assert line[-1] in ".?"
        for chatter in ("Traceback", "HYDRA_FULL_ERROR", "Error executing", "Exception", "full_key", "ConfigDict"):
            assert chatter not in line
        return line

    return run


@pytest.fixture
def trained(capsys):
    """Run the door with what it must train; return the run's directory and what was printed."""

    def run(*arguments: str, code: int = 0) -> tuple[Path, str, str]:
        assert run_train([*QUICK, *arguments]) == code
        out, err = capsys.readouterr()
        return INVOCATION.directory.absolute(), out, err

    return run


def summary(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text(encoding="utf-8"))


# ---- what is refused: one sentence, exit code 2, nothing left behind

REFUSALS = [
    # names
    ("init=he_norml", "init=he_norml is unknown. Did you mean 'he_normal'"),
    ("init=xavier_unifrom", "init=xavier_unifrom is unknown. Did you mean 'xavier_uniform'"),
    (
        "init=qqqq",
        "init=qqqq is unknown. Choose one of autoinit, .*, zeros; init=package.module:function takes your own",
    ),
    ("act=rel", "act=rel is unknown. Did you mean 'relu'"),
    ("model=mpl", "model=mpl is unknown. Did you mean 'mlp'"),
    ("data=fashon", "data=fashon is unknown. Did you mean 'fashion_mini'"),
    ("optim=adm", "optim=adm is unknown. Did you mean 'adam'"),
    ("experiment=typo", "experiment=typo is unknown. Choose one of .*wandb_five_methods"),
    ("experiment=wandb_five_method", "Did you mean 'wandb_five_methods'"),
    ("init.name=foo", "init=foo is unknown"),
    # keys
    (
        "init.gian=2",
        "has no init.gian; its keys are init.gain, init.sigma_b, init.distribution. Did you mean 'init.gain'",
    ),
    ("act.slope=2", "act=tanh has no act.slope; it has no keys"),
    ("act.negative_slope=0.2", r"act=tanh has no act.negative_slope \(a key of act=leaky_relu, act=prelu\)"),
    ("train.epoch=3", "train.epoch is not a key. Did you mean 'train.epochs'"),
    ("sed=3", "sed is not a key. Did you mean 'seed'"),
    ("lr=0.1", "lr is not a key. Did you mean 'optim.lr'"),
    ("+bogus=1", "bogus is not a key"),
    ("+init.bogus=1", "init=glorot_uniform has no init.bogus"),
    ("~init.gain", "init.gain is missing for init=glorot_uniform"),
    ("hydra.bogus=1", "hydra.bogus is not a key"),
    # values
    ("depth=0", "depth=0 must be a whole number of at least 1 hidden layer: say for example depth=3"),
    ("depth=x", "depth=x must be a whole number"),
    ("depth=null", "depth=null cannot be for model=mlp"),
    ("depth.x=3", "depth.x is not a key: depth is a single value, for example depth=3"),
    ("width=-1", "width=-1 must be a whole number of at least 1 unit, or a list of them"),
    ("width=[8,8]", r"width=\[8, 8\] lists 2 layers but depth=5: say depth=2"),
    ("seed=x", "seed=x must be a whole number from 0"),
    ("seed=-1", "seed=-1 must be a whole number from 0"),
    ("seed=1180591620717411303424", "seed=1180591620717411303424 must be a whole number from 0"),
    ("optim.lr=abc", "optim.lr=abc must be a finite number of at least 0: say for example optim.lr=0.01"),
    ("optim.lr=nan", "optim.lr=nan must be a finite number"),
    ("optim.lr=-1", "optim.lr=-1 must be a finite number of at least 0"),
    ("init.gain=abc", "init.gain=abc must be a number"),
    ("init.gain=0", "init.gain=0 must be a positive number.*use init=zeros"),
    ("init=zeros init.gain=2", "init=zeros has no init.gain .*; its only key is init.sigma_b"),
    ("init=he_normal init.mode=fan_inn", "init.mode=fan_inn must be one of fan_in, .*Did you mean 'fan_in'"),
    ("act=leaky_relu act.negative_slope=x", "act.negative_slope=x is not a finite number"),
    ("model.norm=group", "model.norm=group must be one of none, batch, layer for model=mlp: .* model.norm=batch"),
    ("model=gpt data=tiny_text model.norm=rms", "model.norm=rms must be one of none, pre, post for model=gpt"),
    ("width=[]", r"width=\[\] lists no layer: give a number, or one for each hidden layer"),
    ("model.dropout=1.5", r"model.dropout=1.5 must be a probability in \[0, 1\)"),
    ("data.validation=2", r"data.validation=2 must be a fraction in \[0, 1\)"),
    ("data.seed=-1", "data.seed=-1 must be a non-negative integer"),
    ("train.batch_size=20000", "train.batch_size=20000 is more than the 9000 training samples of data=fashion_mini"),
    ("train.steps=0", "train.steps=0 must be a whole number of at least 1 update"),
    ("train.save=perhaps", "train.save=perhaps must be true or false"),
    ("precision=fp16", "precision=fp16 must be one of fp32, bf16, fp64"),
    ("threads=0", "threads=0 must be auto or a whole number of at least 1"),
    ("device=gpu", "device=gpu names no device: use device=auto, cpu, cuda"),
    ("sweep.grids=3", "sweep.grids=3 must be a list"),
    ("depth=${nope}", "depth .*nope"),
    # combinations
    ("init=dirac", "init=dirac needs convolutions and the model has none: use init=identity"),
    ("init=delta_orthogonal", "init=delta_orthogonal needs convolutions and the model has none: use init=orthogonal"),
    (
        "init=gpt2",
        r"with the role branch_end, .*\(model=resmlp, resnet, vit or gpt\), or in Python",
    ),
    ("init=mimetic", r"with the role q, .*\(model=vit or gpt\)"),
    ("model=torchvision depth=3", "depth cannot be set for model=torchvision, which has its own: leave depth=3 out"),
    ("model=cnn data=gaussian", "model=cnn needs images .* and the data has shape"),
    # one's own
    ("init=custom", "init.target=null names nothing to import: give init.target=package.module:function"),
    ("init=custom init.target=nowhere:f", "init.target=nowhere:f: cannot import module 'nowhere'"),
    ("init=custom init.target=math:nope", "init.target=math:nope: 'math' has no 'nope'"),
    ("act=custom act.target=math", "act.target=math names nothing to import"),
    ("model=custom", "model=custom needs model.target="),
    ("data=custom data.target=math:pi", "data.target=math:pi"),
    (
        "data=custom data.target=os:listdir +data.path=no/where",
        r"data.target=os:listdir failed when it was called \(FileNotFoundError: .* 'no/where'\): mend the function",
    ),
    # what is no override
    ("init", "init has no value: write init=…, for example init=he_normal"),
    ("depth", r"depth has no value: write depth=…, for example depth=3\.$"),
    ("train.epochs", r"train.epochs has no value: write train.epochs=…, for example train.epochs=5\.$"),
    (
        "sweep",
        r"sweep has no value: it is a section of keys, sweep.name, .*: write for example sweep.name=depths",
    ),
    ("train", r"train has no value: it is a section of keys, train.epochs, .*: write for example train.epochs=5\.$"),
    ("he_normal", "he_normal has no value: write init=he_normal"),
    ("init:he_normal", "init:he_normal has no value: keys and values are joined by =, so write init=he_normal\\.$"),
    ("optim.lr:0.1", r"optim.lr:0.1 has no value: keys and values are joined by =, so write optim.lr=0.1\.$"),
    ("nothing:like_it", "nothing:like_it has no value: write key=value, for example depth=3"),
    ("kaiming_normal_", "kaiming_normal_ has no value: write init=he_normal"),
    ("depht", "depht has no value: write key=value, for example depth=3. Did you mean 'depth'"),
    ("=3", "=3 has no key: write key=value"),
    ("init=", "init= names no option of init: choose one of"),
    ("init=3", "init=3 names no option of init"),
    ("init=null", "init=null names no option of init"),
    ("init=[zeros]", r"init=\[zeros\] names no option of init"),
    ("width=[8", r"width=\[8 cannot be read as key=value"),
    ("seed='3", "seed='3 cannot be read as key=value"),
    ("--bogus", "--bogus is not a flag"),
    ("--depth=3", "--depth=3 is not a flag: keys are written without dashes, depth=3"),
    ("--cfg nothing", "--cfg.*invalid choice"),
    # several values, and grids
    ("init=zeros,ones", "init=zeros,ones names several values: add -m to run each of them"),
    ("seed=range(3)", r"seed=range\(3\) names several values: add -m"),
    ("width=8,4", r"width=8,4 names several values: .* or write the list as 'width=\[8,4\]'"),
    ("-m init=zeros,he_norml", "init=he_norml is unknown"),
    (
        "optim.lr=interval(0,1)",
        r"interval\(0,1\) has infinitely many values: list those to run, as in -m optim.lr=0.01,0.1,1",
    ),
    ("-m optim.lr=interval(0,1)", r"optim.lr=interval\(0,1\) has infinitely many values"),
    (
        "-m sweep.exclude.init=zeros",
        r"sweep.exclude.init is not a key: sweep.exclude is a list, for example 'sweep.excl",
    ),
    (
        "-m depth=[3,10]",
        r"depth=\[3, 10\] is a list, and must be a whole .*: several values are written depth=3,10, in",
    ),
    ("-m init=[zeros,ones]", r"names no option of init: several are written init=zeros,ones, in"),
    ("-m depth=1,0", "depth=0 must be"),
    ("-m optim.lr=0.1,abc", "optim.lr=abc must be"),
    ("-m init=glob(foo*)", r"init=glob\(foo\*\) matches no option"),
    ("-m init=dirac,delta_orthogonal", "needs convolutions and the model has none"),
    ("-m init=dirac", "init=dirac needs convolutions and the model has none"),
]


@pytest.mark.parametrize(("typed", "sentence"), REFUSALS, ids=[typed for typed, _ in REFUSALS])
def test_refusal(refused, typed, sentence):
    assert re.search(sentence, refused(*typed.split(" ")))


def test_a_chosen_directory_is_not_made_either(refused, tmp_path):
    refused("depth=0", "hydra.run.dir=deep/down/run")
    refused("init=dirac", f"hydra.run.dir={tmp_path}/elsewhere")
    refused("-m", "init=zeros,typo", "sweep.root=grids")
    assert tree(tmp_path) == set()


def test_a_directory_that_was_there_stays_as_it_was(refused, tmp_path):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("mine", encoding="utf-8")
    (tmp_path / "outputs").mkdir()
    refused("depth=0", "hydra.run.dir=run")
    refused("init=dirac", "hydra.run.dir=run")
    assert (tmp_path / "run" / ".hydra" / "config.yaml").read_text(encoding="utf-8") == "mine"


def test_no_such_device(refused):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert re.search("device=cuda is not available here .*: use device=cpu", refused("device=cuda"))


@pytest.mark.slow
def test_no_such_architecture(refused):
    assert "Did you mean 'resnet18'" in refused("model=torchvision", "model.arch=resnet17")


# ---- data


@pytest.fixture
def copies(tmp_path):
    """The shipped files under the names of Fashion-MNIST: right in form, wrong in content."""
    root = tmp_path / "data"
    root.mkdir()
    for name in FILES:
        shutil.copy(SHIPPED / f"{name}.gz", root)
    return root


def test_data_of_another_content(refused, copies):
    sentence = refused("data=fashion_mnist", f"data.root={copies}")
    assert re.search("data/train-images-idx3-ubyte.gz is damaged .*content is .*, not f4a8712d7a061bf", sentence)


def test_truncated_data(refused, copies):
    path = copies / f"{FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:100_000])
    assert "train-images-idx3-ubyte.gz" in refused("data=fashion_mnist", f"data.root={copies}")


def test_corrupted_data(refused, copies):
    path = copies / FILES[1]
    content = bytearray(gzip.decompress((copies / f"{FILES[1]}.gz").read_bytes()))
    content[2] = 0x0D
    path.write_bytes(bytes(content))
    (copies / f"{FILES[1]}.gz").unlink()
    assert "train-" in refused("data=fashion_mnist", f"data.root={copies}")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_network(refused, monkeypatch, tmp_path, name):
    def gone(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr("socket.getaddrinfo", gone)
    monkeypatch.setattr("socket.socket.connect", gone)
    (tmp_path / "data").mkdir()
    sentence = refused(f"data={name}", f"data.root={tmp_path / 'data'}")
    assert re.search(f"data={name} is not here .*no network here.*connect to the network", sentence)


# ---- places that cannot be written


def test_below_a_regular_file(refused, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "cannot be written (Not a directory): choose another directory" in refused("hydra.run.dir=file/run")
    assert "cannot be written (Not a directory)" in refused("-m", "init=zeros,ones", "sweep.root=file/sweeps")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_below_proc(refused):
    assert "/proc/none cannot be written" in refused("hydra.run.dir=/proc/none/run")
    assert "cannot be written" in refused("-m", "init=zeros,ones", "sweep.root=/proc/none")


@pytest.fixture
def mounted(tmp_path):
    """Mount a small file system, read-only if asked; skip where that is not allowed."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("this user may not mount")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def test_read_only(refused, mounted):
    place = mounted("ro,size=8m")
    assert "cannot be written (Read-only file system)" in refused(f"hydra.run.dir={place}/run")


def test_full_disk(refused, mounted):
    place = mounted("size=64k")
    assert "No space is left for" in refused(*QUICK, f"hydra.run.dir={place}/run")
    assert "No space is left for" in refused(*QUICK, "-m", "init=zeros,ones", f"sweep.root={place}/sweeps")


def test_a_disk_that_fills_while_training_keeps_what_was_recorded(mounted, capsys):
    # Room for two flushes at least, on a machine however fast: rows and events take well below 1.5 MB in two seconds.
    place = mounted("size=4m")
    keep = ["hydra.run.dir=" + str(place / "run"), "train.epochs=20000", "log.histograms=2"]
    assert run_train([*keep, "depth=1", "width=8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "No space is left for" in line
    assert f"What it recorded so far is in {place / 'run'}" in line
    assert not (place / "run" / "summary.json").exists()
    assert len(pd.read_csv(place / "run" / "metrics.csv")) > 1


@pytest.mark.parametrize(
    "bytes_per_file", [pytest.param(500, marks=pytest.mark.slow), 2000, pytest.param(8192, marks=pytest.mark.slow)]
)
def test_files_that_may_not_grow(tmp_path, bytes_per_file):
    """A quota, for users who cannot mount: a run that cannot begin leaves nothing."""
    code = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, 2 * ({bytes_per_file},))\n"
    code += "from initlab.cli.train import run_train; sys.exit(run_train(sys.argv[1:]))"
    done = shell("train.epochs=1", program=[sys.executable, "-c", code])
    assert done.returncode == 2, done.stderr
    assert "No space is left for" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == set()


# ---- what runs


def test_a_run_leaves_its_directory_and_a_table(trained):
    directory, out, err = trained("init=he_normal", "act=relu", "seed=3", "log.tensorboard=true")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-he_normal-relu-d1-s3", directory.name)
    assert directory.parent == Path.cwd() / "outputs" / "runs"
    assert {".hydra", "config.yaml", "metrics.csv", "parameters.csv", "run.log", "summary.json"} <= tree(directory)
    assert summary(directory)["status"] == "completed"
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "he_normal-relu-d1-s3"
    assert lines[1].split() == ["loss", "accuracy"]
    assert [line.split()[0] for line in lines[2:5]] == ["train", "validation", "test"]
    assert lines[5].startswith("completed · 2 steps in ")
    assert lines[6].split() == ["files", str(directory.relative_to(Path.cwd()))]
    assert lines[7].split(maxsplit=3)[-1] == "tensorboard --logdir outputs/runs"
    assert lines[8] == f"or initlab report {directory.relative_to(Path.cwd())}"
    assert max(map(len, lines)) < 80


def test_regression_has_no_accuracy(trained):
    _, out, _ = trained("data=sine", "act=sin", "init=siren")
    assert "accuracy" not in out


def test_canonical_names_are_recorded(trained):
    directory, _, _ = trained("init=kaiming_normal_", "act=ReLU")
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    assert (config["init"]["name"], config["act"]["name"]) == ("he_normal", "relu")
    assert "init=he_normal" in (directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("typed", ["{init: zeros}", "[{init: zeros}]", "{init: zeros},{init: ones}"])
def test_cells_to_leave_out_need_no_brackets(capsys, typed):
    assert run_train([*QUICK, "-m", "init=he_normal,zeros", f"sweep.exclude={typed}", "dry_run=true"]) == 0
    assert "1 network in 1 group," in capsys.readouterr().out


def test_aliases_in_a_sweep(capsys):
    assert run_train([*QUICK, "-m", "init=xavier_normal,'zero',eye", "act=swish", "sweep.name=s"]) == 0
    frame = pd.read_csv("outputs/sweeps/s/sweep.csv")
    assert sorted(frame["init"]) == ["glorot_normal", "identity", "zeros"]
    assert set(frame["act"]) == {"silu"}


def test_a_glob_sees_no_alias(capsys):
    assert run_train([*QUICK, "-m", "init=glob([x*,k*,he*])", "sweep.name=s"]) == 0
    assert sorted(pd.read_csv("outputs/sweeps/s/sweep.csv")["init"]) == ["he_normal", "he_uniform"]


def test_what_cannot_exist_is_skipped_in_a_list(capsys):
    assert run_train([*QUICK, "-m", "init=dirac,zeros", "sweep.name=s"]) == 0
    out = capsys.readouterr().out
    frame = pd.read_csv("outputs/sweeps/s/sweep.csv").set_index("init")
    assert frame["status"].to_dict() == {"dirac": "skipped", "zeros": "completed"}
    assert "init=dirac needs convolutions" in out


def test_a_dry_run_writes_nothing(capsys, tmp_path):
    with pytest.raises(SystemExit) as leaving:
        run_train([*QUICK, "dry_run=true"])
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"glorot_uniform-tanh-d1-s0 would go to /.*-d1-s0\. Nothing was written\.\n", out)
    assert tree(tmp_path) == set()


def test_two_runs_in_one_second_are_two_runs(monkeypatch, trained):
    import hydra.core.utils

    class Stopped(hydra.core.utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(hydra.core.utils, "datetime", Stopped)
    names = [trained()[0].name for _ in range(3)]
    assert names == [f"2030-01-02_03-04-05-glorot_uniform-tanh-d1-s0{end}" for end in ("", "-2", "-3")]
    assert all((Path("outputs/runs") / name / ".hydra" / "hydra.yaml").exists() for name in names)


def test_directories_are_taken_one_by_one(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: InvocationState().make_directory(tmp_path / "a" / "run", False), range(40)))
    assert len(set(taken)) == 40


def test_a_chosen_directory_is_taken_as_it_is(trained):
    assert trained("hydra.run.dir=here")[0] == Path.cwd() / "here"
    directory, out, _ = trained("hydra.run.dir=here", "seed=1", "log.tensorboard=true")
    assert directory == Path.cwd() / "here"
    assert "tensorboard --logdir here" in out
    assert summary(directory)["fingerprint"] != ""
    assert yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))["seed"] == 1


def test_options_of_my_own_directory(trained, tmp_path):
    (tmp_path / "mine" / "init").mkdir(parents=True)
    (tmp_path / "mine" / "init" / "mine.yaml").write_text("name: normal\nmean: 0.0\nstd: 0.3\nsigma_b: 0.0\n")
    directory, _, _ = trained("--config-dir", "mine", "init=mine")
    assert pd.read_csv(directory / "parameters.csv")["promised_std"].max() == pytest.approx(0.3)


# ---- divergence is a result


@pytest.mark.parametrize(
    "typed", ["init=normal init.std=100 act=relu depth=30", "act=linear init=normal init.std=1e30 depth=2"]
)
def test_divergence_is_a_result(trained, typed):
    directory, out, err = trained(*typed.split(), "log.histograms=3", "log.tensorboard=true")
    facts = summary(directory)
    assert facts["status"] == "diverged"
    assert facts["first_bad_step"] == 0
    assert facts["first_bad_layer"].startswith("hidden.") or facts["first_bad_layer"] in ("readout", "loss")
    assert "diverged at step 0, first in " + facts["first_bad_layer"] in out
    assert err == ""
    layers = pd.read_csv(directory / "layers.csv")
    assert layers.loc[layers["stat"] == "nonfinite", "value"].max() > 0


def test_divergence_while_training(trained):
    directory, _, _ = trained("act=linear", "optim.lr=1e6", "train.steps=60", "depth=3")
    facts = summary(directory)
    assert facts["status"] == "diverged"
    assert 0 < facts["first_bad_step"] < 60


def test_divergence_leaves_the_others_alone(trained, capsys):
    alone, _, _ = trained("act=linear", "train.steps=30")
    assert run_train([*QUICK, "train.steps=30", "-m", "act=linear", "optim.lr=0.01,1e30", "sweep.name=s"]) == 0
    frame = pd.read_csv("outputs/sweeps/s/sweep.csv").set_index("optim.lr")
    assert frame["status"].to_dict() == {0.01: "completed", 1e30: "diverged"}
    assert frame["loss"][0.01] == pytest.approx(summary(alone)["loss"], rel=1e-4)


# ---- what fails while running, and what is interrupted


def write_model(name: str, body: str) -> str:
    text = "import torch\n\n\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
    text += "".join(f"        {line}\n" for line in body.splitlines())
    text += "\n\ndef build(classes):\n    return Net(784, classes)\n"
    text += "\n\ndef broken(classes):\n    raise KeyError('unbuilt')\n"
    Path(f"{name}.py").write_text(text, encoding="utf-8")
    return f"model.target={name}:build"


def test_a_bug_is_a_failed_run(trained):
    target = write_model("raises_in_forward", "raise RuntimeError('boom')")
    directory, out, err = trained("model=custom", target, code=1)
    assert summary(directory)["status"] == "failed"
    assert summary(directory)["error"] == "RuntimeError: boom"
    assert "Traceback (most recent call last)" in (directory / "run.log").read_text(encoding="utf-8")
    assert "failed: RuntimeError: boom" in out
    assert err.splitlines() == [f"initlab: the run failed; its traceback is in {directory}/run.log."]


def test_a_network_that_cannot_be_built_is_a_failed_run(trained):
    write_model("cannot_be_built", "return x")
    directory, _, err = trained("model=custom", "model.target=cannot_be_built:broken", code=1)
    assert summary(directory)["status"] == "failed"
    assert "KeyError: 'unbuilt'" in (directory / "run.log").read_text(encoding="utf-8")
    assert len(err.splitlines()) == 1


def test_a_bug_in_one_cell_leaves_the_others_alone():
    text = """
import torch

def build(width, classes):
    if width > 8:
        raise RuntimeError("boom")
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, classes))
"""
    Path("fails_when_wide.py").write_text(text, encoding="utf-8")
    mine = ["model=custom", "model.target=fails_when_wide:build"]
    assert run_train([*QUICK, "-m", "width=4,16", *mine, "sweep.name=s"]) == 1
    frame = pd.read_csv("outputs/sweeps/s/sweep.csv").set_index("width")
    assert frame["status"].to_dict() == {4: "completed", 16: "failed"}
    assert frame["error"][16] == "RuntimeError: boom"


def test_an_interruption_from_within(trained):
    target = write_model("interrupts", "raise KeyboardInterrupt")
    _, out, err = trained("model=custom", target, code=130)
    assert err.strip() == "initlab: interrupted."
    assert "Traceback" not in out + err


def test_ctrl_c():
    process = subprocess.Popen(
        [*TRAIN, "train.epochs=1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    started = time.monotonic()
    while not list(Path("outputs").rglob("metrics.csv")) and time.monotonic() - started < 120:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    (directory,) = Path("outputs/runs").iterdir()
    assert f"initlab: interrupted. What it recorded so far is in {directory}." in err
    assert not (directory / "summary.json").exists()


def test_the_traceback_is_shown_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert run_train(["depth=0"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("initlab: depth=0 must be")


# ---- real processes


def shell(*arguments: str, where: Path | None = None, program: list[str] = TRAIN) -> subprocess.CompletedProcess:
    return subprocess.run([*program, *arguments], capture_output=True, text=True, cwd=where)


def test_a_refusal_in_a_process_of_its_own(tmp_path):
    done = shell("init.gian=2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("initlab: init=glorot_uniform has no init.gian;")
    assert len(done.stderr.splitlines()) == 1
    assert tree(tmp_path) == set()


@pytest.mark.slow
def test_both_doors_are_one(tmp_path):
    """`python train.py` and `initlab train` leave the same network in the directory they were called in."""
    one, two = tmp_path / "one", tmp_path / "two"
    facts = []
    for place, program in (
        (one, TRAIN),
        (two, [sys.executable, "-c", "from initlab.cli.main import main; main()", "train"]),
    ):
        place.mkdir()
        done = shell(*QUICK, "init=he", where=place, program=program)
        assert (done.returncode, done.stderr) == (0, "")
        (directory,) = (place / "outputs" / "runs").iterdir()
        facts.append({k: summary(directory)[k] for k in ("fingerprint", "hash", "loss", "test_loss", "status")})
    assert facts[0] == facts[1]


HELP = ["init=he_normal init.gain=1.2", "act=leaky_relu", "depth=3,10,30", "seed=range(5)", "optim=adam", "width="]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_groups_keys_and_an_example_for_every_axis(capsys, flag):
    with pytest.raises(SystemExit) as leaving:
        run_train([flag])
    assert not leaving.value.code
    out = capsys.readouterr().out
    assert all(line in out for line in HELP)
    assert "glorot_normal, glorot_uniform" in out
    assert re.search(r"train.batch_size +128 +samples per update", out)
    assert "$" not in out
    assert "_target_" not in out
    assert max(map(len, (line for line in out.splitlines() if ": " not in line))) <= 120


def test_hydras_own_flags_work(capsys):
    assert run_train(["--cfg", "job", "init=he"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["init"]["name"] == "he_normal"
    done = shell("--info", "defaults")  # it turns Hydra's logging on for good
    assert (done.returncode, done.stderr) == (0, "")
    assert "init/glorot_uniform" in done.stdout
    assert run_train(["-sc", "install=bash"]) == 0
    assert "complete " in capsys.readouterr().out
    assert tree(Path.cwd()) == set()


def test_completion_offers_options(monkeypatch, capsys):
    line = "python train.py init=he"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert run_train(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["init=he_normal", "init=he_uniform"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_reader_may_leave():
    line = f"set -o pipefail; {sys.executable} {TRAIN[1]} --help | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_wheel_brings_its_configuration(tmp_path):
    """The door works from a wheel, with no checkout in sight."""
    wheels, site, place = tmp_path / "wheels", tmp_path / "site", tmp_path / "place"
    place.mkdir()
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(wheels), str(ROOT)], capture_output=True
    )
    if built.returncode:
        pytest.skip("no wheel can be built here")
    shutil.unpack_archive(next(wheels.glob("*.whl")), site, "zip")
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import initlab; assert {str(site)!r} in initlab.__file__\n"
    code += "from initlab.config.option_files import conf_dir; assert conf_dir().parent.name == 'initlab'\n"
    code += "from initlab.cli.main import main; main()"
    done = shell("train", *QUICK, where=place, program=[sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert list((place / "outputs" / "runs").glob("*/summary.json"))


@pytest.mark.parametrize("key", ["sweep.name=a", "sweep.grids=[{init: zeros}]", "sweep.exclude=[{init: zeros}]"])
def test_what_is_about_a_sweep_is_refused_in_a_single_run(refused, key):
    assert f"{key} is about a sweep" in refused(key, "train.steps=1")


def test_momentum_below_1(refused):
    assert "optim.momentum=1.5 must be a number in [0, 1)" in refused("optim.momentum=1.5", "train.steps=1")
