"""Hydra's side: every job composed as Hydra composes it, and given back to it as if it had run it."""

import itertools
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from initlab.cli.hydra import JobFailed, compose_jobs
from initlab.cli.hydra.job_returns import write_hydra_files
from initlab.cli.train import run_train
from initlab.config.compose import register_config
from initlab.config.fast_compose import Composer
from initlab.config.option_files import conf_dir, option_names
from initlab.config.schema import GROUPS

QUICK = ["depth=1", "width=4", "train.steps=3", "log.histograms=0", "data=gaussian", "data.train_size=300"]
QUICK += ["data.test_size=50"]


@pytest.fixture(autouse=True)
def at_home(request, tmp_path, monkeypatch):
    # What is composed holds the working directory: it stays where one composer serves many tests.
    if "hydra" not in request.fixturenames:
        monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


# --- composition


@pytest.fixture(scope="module")
def hydra():
    loader = hydras_loader()
    master = loader.load_configuration("config", ["hydra.sweeper.params={}", "seed=7"], RunMode.MULTIRUN)
    return loader, master, Composer(loader, master)


def hydras_loader():
    register_config()
    setup_globals()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return GlobalHydra.instance().config_loader()


def hydras_own(loader, master, overrides, number):
    composed = loader.load_sweep_config(master, overrides)
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    return composed


def everything(composed):
    """What a configuration consists of: text, types, flags and values resolved, Hydra's own node included."""

    def nodes(node, path=""):
        yield path, type(node).__name__, node._metadata.flags, node._metadata.ref_type, node._metadata.object_type
        if OmegaConf.is_config(node) and not node._is_none() and not node._is_interpolation():
            for key in node if OmegaConf.is_dict(node) else range(len(node)):
                yield from nodes(node._get_node(key), f"{path}.{key}")

    HydraConfig.instance().set_config(pickle.loads(pickle.dumps(composed)))
    task = {key: composed[key] for key in composed if key != "hydra"}
    resolved = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in task.items()}
    places = [OmegaConf.select(composed, f"hydra.sweep.{key}") for key in ("dir", "subdir")]
    return OmegaConf.to_yaml(composed), list(nodes(composed)), resolved, places


JOBS = [
    *([f"{group}={option}"] for group in GROUPS for option in option_names(group) if option != "custom"),
    *([f"{group}=custom", f"{group}.target=mine:thing"] for group in GROUPS if "custom" in option_names(group)),
    *([f"experiment={name}"] for name in option_names("experiment")),
    [f"experiment={option_names('experiment')[0]}", "depth=3", "width=16", "optim.lr=0.5", "init=zeros"],
    [],
    ["seed=3", "optim.lr=1e-3", "optim.clip_norm=null", "width=[4,5]", "depth=2", "sweep.name=x"],
    ["depth=${seed}", "seed=4", "optim.lr=${oc.decode:'0.5'}"],
    ["train.steps=5", "train.target_loss=${optim.lr}", "init.gain=${act.negative_slope}", "act=leaky_relu"],
    ["+act.extra=1", "act=relu", "+train.own={a:1,b:[2,3]}"],
    ["~optim.momentum", "optim=sgd", "~init.gain"],
    ["~optim.nesterov=false"],
    ["++optim.lr=3", "++optim.new=4"],
    ["model=cnn", "width=8", "model.kernel=5", "act=relu"],
    ["model=resnet", "depth=1"],
    ["width=8", "model=cnn"],
    ["sweep.exclude=[{init:[zeros,'o n e s'],act:relu}]", "sweep.grids=[{seed:1}]"],
    ["sweep.name='a b=c, d'", "data.root='/tmp/x y'"],
    ["init={name:zeros}", "act=relu"],
    ["log.every=2", "log.every=3"],
]


@pytest.mark.parametrize("overrides", JOBS, ids=lambda overrides: " ".join(overrides) or "nothing")
def test_a_job_is_composed_as_hydra_composes_it(hydra, overrides):
    loader, master, composer = hydra
    # Twice: what is kept must not have been touched by the job before.
    for number in (3, 4):
        assert composer.from_base(overrides) is not None
        ours, theirs = composer.job(overrides, number), hydras_own(loader, master, overrides, number)
        assert everything(ours) == everything(theirs)


@pytest.mark.parametrize(
    "overrides",
    [
        *(["hydra.job.name=mine"], ["hydra/job_logging=default"], ["seed=1,2"], ["init@optim=zeros"], ["~experiment"]),
        *(["+init@extra=zeros"], ["act=[relu,tanh]"]),
    ],
    ids=" ".join,
)
def test_out_of_the_ordinary_is_left_to_hydra(hydra, overrides):
    loader, master, composer = hydra
    assert outcome(lambda: composer.job(overrides, 1)) == outcome(lambda: hydras_own(loader, master, overrides, 1))


WRONG = [
    "sed=1",
    "depth=three",
    "init=he_norml",
    "optim.momentun=1",
    "~optim.nothing",
    "+seed=3",
    "+init=zeros",
    "act=",
]
WRONG += [
    "initt=zeros",
    "seed=[1]",
    "seed={a:1}",
    "~seed=5",
    "train=3",
    "init.name.first=x",
    "log.every=1.5",
    "a b=3",
    "x",
]


@pytest.mark.parametrize("override", WRONG)
def test_errors_are_hydras_own(hydra, override):
    loader, master, composer = hydra
    found = outcome(lambda: composer.job([override, "optim=adam"], 1))
    assert found == outcome(lambda: hydras_own(loader, master, [override, "optim=adam"], 1))
    if override not in ("act=", "optim.momentun=1", "seed=[1]"):
        assert isinstance(found[0], type)


def outcome(compose):
    try:
        return everything(compose())
    except (HydraException, OmegaConfBaseException) as error:
        return type(error), str(error), str(error.__cause__)


def test_all_jobs_share_the_clock_of_the_sweep(hydra):
    _, master, composer = hydra
    jobs = [composer.job([f"seed={k}"], k) for k in range(3)] + [composer.job(["hydra.job.name=x"], 4)]
    assert {OmegaConf.select(job, "hydra.sweep.dir") for job in jobs} == {
        str(OmegaConf.select(master, "hydra.sweep.dir"))
    }


def test_hydra_reads_its_files_once_per_set_of_choices(hydra, monkeypatch):
    loader, master, _ = hydra
    asked = []
    real = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda m, o: asked.append(o) or real(m, o))
    grid = itertools.product(("zeros", "ones"), ("relu", "tanh"), range(5))
    composer = Composer(loader, master)
    for number, (init, act, seed) in enumerate(grid):
        composer.job([f"init={init}", f"act={act}", f"seed={seed}", "optim.lr=0.1"], number)
    assert asked == [[f"init={i}", f"act={a}"] for i in ("zeros", "ones") for a in ("relu", "tanh")]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [([], "zeros-tanh-d5-s1-"), (["hydra.sweep.subdir=job-${hydra:job.num}-${init.name}"], "job-1-zeros")],
)
def test_directories_are_known_before_anything_runs(overrides, named):
    loader = hydras_loader()
    master = loader.load_configuration("config", ["sweep.name=s", *overrides], RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=None)
    jobs = compose_jobs(context, master, [["init=zeros", f"seed={k}", "sweep.name=s"] for k in range(2)], 0)
    assert jobs[1].directory.parent == Path.cwd() / "outputs" / "sweeps" / "s"
    assert jobs[1].directory.name.startswith(named)


@pytest.mark.parametrize("overrides", [*JOBS[-20:], ["sweep.name='half a letter: \udce9'"]], ids=ascii)
def test_files_are_written_as_hydra_writes_them(hydra, overrides, tmp_path):
    loader, master, _ = hydra
    composed = hydras_own(loader, master, overrides, 3)
    OmegaConf.set_readonly(composed.hydra, True)
    own = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    texts = {
        "config.yaml": OmegaConf.to_yaml(own),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(composed, "hydra")),
        "overrides.yaml": OmegaConf.to_yaml(composed.hydra.overrides.task),
    }
    write_hydra_files(composed, tmp_path / ".hydra")
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / ".hydra").iterdir()} == texts


# --- jobs given back


def sweeps(*overrides: str, code: int = 0) -> Path:
    assert run_train(["-m", *QUICK, "sweep.name=s", *overrides]) == code
    return Path("outputs/sweeps/s")


def files_left(directory: Path, drop: bool) -> dict:
    found = {}
    for path in sorted(directory.glob("*/.hydra/*.yaml")):
        text = path.read_text()
        if path.name == "hydra.yaml" and drop:
            node = yaml.safe_load(text)["hydra"]
            node.pop("launcher")
            node["runtime"].pop("choices")
            node["overrides"].pop("hydra")
            text = json.dumps(node).replace("/basic/", "/ensemble/")
        found[str(path.relative_to(directory))] = text
    return found


def test_hydras_files_are_those_of_its_own_launcher():
    axes = ["init=zeros,he_normal", "seed=0,1", "optim.lr=0.1", "hydra.output_subdir=.hydra"]
    ours = sweeps(*axes, "sweep.root=ensemble")
    theirs = sweeps(*axes, "sweep.root=basic", "hydra/launcher=basic")
    assert (ours, theirs) == (Path("outputs/sweeps/s"), Path("outputs/sweeps/s"))
    ours, theirs = (files_left(Path(name, "s"), drop=True) for name in ("ensemble", "basic"))
    assert len(ours) == 12
    assert {k: v.replace("=basic", "=ensemble").replace(": basic", ": ensemble") for k, v in theirs.items()} == ours


def test_both_launchers_leave_the_same_table():
    for launcher in ("ensemble", "basic"):
        sweeps("init=zeros,dirac", "seed=0,1", f"sweep.root={launcher}", f"hydra/launcher={launcher}")
    tables = [Path(name, "s", "sweep.csv").read_text().splitlines() for name in ("ensemble", "basic")]
    assert len(tables[0]) == len(tables[1]) == 5
    assert [line.count("skipped") for line in tables[0]] == [line.count("skipped") for line in tables[1]]
    assert Path("basic", "s", "multirun.yaml").exists()
    assert Path("ensemble", "s", "multirun.yaml").exists()


EVENTS: list[tuple] = []


class Spy(Callback):
    """Notes what Hydra tells."""

    def on_multirun_start(self, config, **kwargs):
        EVENTS.append(("multirun", "start"))

    def on_multirun_end(self, config, **kwargs):
        EVENTS.append(("multirun", "end"))

    def on_job_start(self, config, **kwargs):
        EVENTS.append(("start", config.hydra.job.num, config.seed, config.hydra.runtime.output_dir))

    def on_job_end(self, config, job_return, **kwargs):
        EVENTS.append(("end", config.hydra.job.num, job_return))


@pytest.fixture
def spy(monkeypatch):
    monkeypatch.setitem(sys.modules, "spying", sys.modules[__name__])
    EVENTS.clear()
    return "+hydra.callbacks.spy._target_=spying.Spy"


def test_callbacks_come_in_pairs_with_what_each_job_gave(spy):
    directory = sweeps("seed=0,1,2", "init=zeros,he_normal", "sweep.max_group=2", spy)
    assert (EVENTS[0], EVENTS[-1]) == (("multirun", "start"), ("multirun", "end"))
    starts, ends = EVENTS[1:-1:2], EVENTS[2:-1:2]
    assert len(starts) == len(ends) == 6
    assert [e[0] for e in starts] == ["start"] * 6
    assert [e[1] for e in starts] == [e[1] for e in ends]
    assert sorted(e[1] for e in starts) == list(range(6))
    for (_, _, seed, place), (_, _, given) in zip(starts, ends, strict=True):
        assert given.status == JobStatus.COMPLETED
        assert given.return_value["status"] == "completed"
        assert given.return_value["path"] == place
        assert given.cfg.seed == seed
        assert given.hydra_cfg.hydra.runtime.output_dir == place
        assert Path(place).parent == directory.absolute()


def test_returns_come_in_the_order_of_the_jobs_and_know_their_configuration(monkeypatch):
    from initlab.cli import hydra as launcher

    seen = []
    real = launcher.launch_jobs
    monkeypatch.setattr(launcher, "launch_jobs", lambda *a: seen.append(real(*a)) or seen[-1])
    sweeps("seed=range(4)", "sweep.order=shuffle", "sweep.max_group=1")
    sweeps("seed=range(4)", "sweep.order=shuffle", "sweep.max_group=1")
    for returns in seen:
        assert [found.cfg.seed for found in returns] == list(range(4))
        assert [found.hydra_cfg.hydra.job.num for found in returns] == list(range(4))
        assert all(isinstance(found, JobReturn) and "hydra" not in found.cfg for found in returns)
        assert [found.overrides[-1] for found in returns] == ["sweep.max_group=1"] * 4
        assert all(found.return_value["status"] == "completed" for found in returns)
        outputs = [found.hydra_cfg.hydra.runtime.output_dir for found in returns]
        assert outputs == [found.return_value["path"] for found in returns]


def test_what_was_done_before_is_not_told_again_unless_hydras_files_are_missing(spy):
    files = "hydra.output_subdir=.hydra"
    directory = sweeps("seed=0,1", files)
    (first,) = directory.glob("*-s0-*")
    import shutil

    shutil.rmtree(first / ".hydra")
    EVENTS.clear()
    sweeps("seed=0,1", files, spy)
    assert [event[1] for event in EVENTS if event[0] == "start"] == [0]
    assert sorted(path.name for path in (first / ".hydra").iterdir()) == ["config.yaml", "hydra.yaml", "overrides.yaml"]


def test_a_failed_network_is_a_failed_job_and_the_exit_code_says_so(spy, capsys):
    Path("own.py").write_text(
        "import torch\n"
        "def model(depth, width, act, input_shape, classes):\n"
        "    class Net(torch.nn.Linear):\n"
        "        def forward(self, x):\n"
        "            if width == 3 and self.training: raise RuntimeError('three')\n"
        "            return super().forward(x)\n"
        "    return Net(input_shape[0], classes)\n"
    )
    directory = sweeps("model=custom", "model.target=own:model", "width=2,3", "init=he_normal", spy, code=1)
    ends = [event for event in EVENTS if event[0] == "end"]
    assert [event[2].status for event in ends] == [JobStatus.COMPLETED, JobStatus.FAILED]
    assert isinstance(ends[1][2]._return_value, JobFailed)
    assert EVENTS[-1] == ("multirun", "end")
    out = capsys.readouterr().out
    assert "1 completed, 1 failed" in out
    assert "RuntimeError: three" in out
    assert "failed" in (directory / "sweep.csv").read_text()


def test_environment_job_logging_and_no_hydra_directory_are_respected(monkeypatch):
    from initlab.sweep import worker

    seen = []
    real = worker.run
    monkeypatch.setattr(worker, "run", lambda *a, **k: seen.append(os.environ.get("OF_THE_JOB")) or real(*a, **k))
    directory = sweeps("seed=0,1", "+hydra.job.env_set.OF_THE_JOB=here", "hydra.output_subdir=null")
    assert set(seen) == {"here"}
    assert "OF_THE_JOB" not in os.environ
    assert list(directory.glob("*/.hydra")) == []


def test_processes_start_before_the_grid_is_composed_in_the_environment_of_the_jobs(monkeypatch):
    from initlab.cli.hydra import launch
    from initlab.sweep.executors import process as processes

    order, compose = [], launch.compose_jobs

    def noting(start):
        return lambda *given, **more: order.append(os.environ.get("OF_THE_JOB")) or start(*given, **more)

    monkeypatch.setattr(processes, "start_process", noting(processes.start_process))
    monkeypatch.setattr(launch, "compose_jobs", lambda *given: order.append("composed") or compose(*given))
    given = ("seed=0,1", "+hydra.job.env_set.OF_THE_JOB=here", "hydra.launcher.executor=process")
    sweeps(*given, "dry_run=true")
    assert order == ["composed"]
    directory = sweeps(*given, "hydra.launcher.workers=1")
    assert order[1:] == ["here", "composed"]
    assert (directory / "sweep.csv").read_text().count("completed") == 2
    sweeps(*given, "sweep.name=new", "init=zeros,nonsense", "hydra.launcher.workers=1", code=2)
    assert order[3:] == ["here", "composed"]
    assert "OF_THE_JOB" not in os.environ


def test_jobs_of_hydras_own_sweeper_are_launched_too():
    directory = sweeps("seed=0,1", "init=zeros,dirac", "hydra/sweeper=basic", "hydra.output_subdir=.hydra")
    assert len(list(directory.glob("*/.hydra/config.yaml"))) == 4
    assert (directory / "sweep.csv").read_text().count("skipped") == 2


def test_a_batch_size_is_refused_with_what_to_say_instead(capsys):
    sweeps("seed=0,1", "hydra.sweeper.max_batch_size=2", code=2)
    assert "sweep.max_group" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_executors_and_their_options_are_checked_first(capsys):
    sweeps("seed=0,1", "hydra.launcher.executor=proces", code=2)
    assert "Did you mean 'process'?" in capsys.readouterr().err
    sweeps("seed=0,1", "+hydra.launcher.options.partition=x", code=2)
    assert "hydra.launcher.options.partition" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_numbers_have_no_gaps_where_cells_were_excluded(spy):
    sweeps("seed=range(4)", "sweep.exclude=[{seed:[1,2]}]", spy)
    assert [(event[1], event[2]) for event in EVENTS if event[0] == "start"] == [(0, 0), (1, 3)]


def test_a_dry_run_leaves_nothing(capsys):
    for launcher in ("ensemble", "basic"):
        sweeps("seed=0,1", "dry_run=true", f"hydra/launcher={launcher}")
        assert "2 networks in 1 group," in capsys.readouterr().out
    assert not Path("outputs").exists()


def test_experiment_files_sweep_sub_grids(tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "sweep:\n"
        "  name: mine\n"
        "  grids:\n"
        "    - {init: zeros, depth: [1, 2]}\n"
        "    - {init: 'glob(he_*)', act: relu, seed: 'range(2)'}\n"
        "hydra:\n"
        "  mode: MULTIRUN\n"
    )
    arguments = ["--config-dir", str(tmp_path / "conf"), "experiment=mine", *QUICK[1:]]
    assert run_train(arguments) == 0
    names = sorted(path.name[:-9] for path in Path("outputs/sweeps/mine").glob("*-s?-*"))
    assert names == ["he_normal-relu-d5-s0", "he_normal-relu-d5-s1", "he_uniform-relu-d5-s0", "he_uniform-relu-d5-s1",
                     "zeros-tanh-d1-s0", "zeros-tanh-d2-s0"]  # fmt: skip
