"""`initlab predict`: what it prints, ranks, draws and refuses."""

import json
import math
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest

import initlab
from initlab.cli.main import main
from initlab.config.compose import compose_config
from initlab.config.fast_compose import Composer
from initlab.config.grid import compose_grid
from initlab.experiment import run as train
from initlab.prediction import rank
from initlab.theory import critical, fixed_point

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def typed(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["initlab", "predict", *line.split()])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capsys.readouterr()
        return int(leaving.value.code or 0), out, err

    return typed


# ---- one network


def test_the_sentence_of_the_issue(run):
    code, out, err = run("act=tanh init=he_normal depth=50 width=128")
    assert (code, err) == (0, "")
    sentence = next(line for line in out.splitlines() if line.startswith("chaotic"))
    assert sentence == (
        "chaotic: gradients grow 1.09× per layer, 10^1.8 over 50 layers; trains to about depth 130; critical gain 1.00"
    )
    point = fixed_point("tanh", 2**0.5, 0.0)
    assert f"χ₁ {point.chi_1:.4f}" in out
    assert f"ξ_c {point.xi_c:.4g}" in out
    lines = [line for line in out.splitlines() if "→" in line]
    assert 10 <= len(lines) < 51
    assert max(map(len, out.split("phase chaotic", maxsplit=1)[0].splitlines())) <= 100
    assert len([line for line in run("depth=50 --all")[1].splitlines() if "→" in line]) == 51


# What each network's forecast must say, and must not: the answers are known.
KNOWN = {
    "act=relu init=he_normal depth=50": ("critical: gradients keep their size; depth is no limit", "chaotic"),
    "act=relu init=glorot_normal depth=50 width=128": ("ordered: the signal dies (q 0.5× per layer", "chaotic"),
    "act=relu init=he_normal init.gain=2 depth=20": ("chaotic: the signal explodes (q 2× per layer", "ordered"),
    "act=relu init=he_normal init.gain=2 depth=10": ("critical gain 1.41", "ordered"),
    "act=tanh init=torch_default depth=20": ("ordered", "chaotic"),
    "act=tanh init=lecun_normal depth=20": ("depth is no limit; the gain is the critical one", "dies"),
    "act=sigmoid init=glorot_normal depth=20": ("critical gain 10.15", "chaotic"),
    "act=gelu init=he_normal depth=20": ("critical at sigma_w 1.41, sigma_b 0.416 (init=critical)", "critical gain"),
    "act=gelu init=critical depth=20": ("q does not tend to q* = 3.56 but slowly goes to 3.03", "depth is no limit"),
    "act=mish init=critical depth=20": (
        "q does not tend to q* = 1.67 but slowly grows without bound",
        "depth is no limit",
    ),
    "act=silu init=critical depth=20": ("critical, but half-stable: gradients shrink", "ordered"),
    "act=silu init=critical init.q_star=1 depth=200": ("critical, but repelling: the signal explodes", "no limit"),
    "act=gelu init=critical init.q_star=1 depth=9": ("a signal off q* = 1 moves away from it", "depth is no limit"),
    "act=softplus init=he_normal depth=20": ("softplus has no critical point", "depth is no limit"),
    "act=tanh init=zeros": ("nothing gets through", "trains to"),
    "act=sigmoid init=zeros": ("no gradient reaches a hidden layer", "trains to"),
    "act=tanh init=ones": ("theory has no answer: the weights of hidden.0 are no independent draws", "trains"),
    "act=tanh init=identity": ("theory has no answer", "trains"),
    "act=tanh model.norm=batch": ("theory has no answer: hidden.0 is next to a norm", "trains"),
    "model=resnet": ("theory has no answer: first is next to a norm", "trains"),
    "model=resnet model.norm=none": ("theory has no answer from", "trains"),
    "model=torchvision": ("theory has no answer: this model", "trains"),
    "model=resmlp act=relu init=he_normal depth=64": ("residual: the signal grows 3", "trains"),
    "model=resmlp act=relu init=he_normal depth=64 model.branch=inverse_depth": ("both are in order", "grows 3"),
    "act=linear init=normal depth=150": ("q passes the largest float", "trains"),
    "depth=1": ("one hidden layer", "trains"),
}


@pytest.mark.parametrize("line", KNOWN)
def test_verdicts_with_a_known_answer(run, line):
    says, never = KNOWN[line]
    code, out, err = run(line)
    assert (code, err) == (0, "")
    verdict = [text for text in out.splitlines() if ":" in text and says in text]
    assert len(verdict) == 1, out
    assert never not in verdict[0]


@pytest.mark.parametrize("act", ["tanh", "relu", "selu", "erf", "sigmoid", "sin"])
def test_the_critical_gain_is_critical(run, act):
    """With it in place of the scheme's own, the same command finds χ₁ = 1."""
    first = json.loads(run(f"act={act} init=glorot_normal init.gain=1.3 depth=5 --json")[1])
    gain = first["critical_gain"]
    again = json.loads(run(f"act={act} init=glorot_normal init.gain={gain!r} depth=5 --json")[1])
    assert first["chi_1"] != pytest.approx(1, abs=0.05)
    assert again["chi_1"] == pytest.approx(1, abs=1e-6)
    assert again["sigma_w"] == pytest.approx(critical(act, sigma_b=0.0).sigma_w, rel=1e-9)


@pytest.mark.parametrize("line", ["init=he_normal act=relu depth=3 width=16", "model=cnn width=4 depth=2 act=tanh"])
def test_what_it_prints_is_what_a_run_records(run, tmp_path, line):
    found = json.loads(run(f"{line} train.batch_size=32 data.seed=3 --json --csv rows.csv")[1])
    written = ["log.histograms=1", "log.jacobian=true"]
    config = compose_config([*line.split(), "train.batch_size=32", "data.seed=3", "train.steps=1", *written])
    train([config], [tmp_path / "run"])
    recorded = pd.read_csv(tmp_path / "run" / "layers.csv").query("source == 'predicted'").reset_index(drop=True)
    assert len(recorded) > 10
    pd.testing.assert_frame_equal(pd.read_csv("rows.csv"), recorded)
    pd.testing.assert_frame_equal(pd.DataFrame(found["rows"])[recorded.columns], recorded, check_dtype=False)


def test_the_data_decide_the_first_layer(run):
    first = {}
    for data in ("gaussian", "fashion_mini data.normalize=false"):
        rows = pd.DataFrame(json.loads(run(f"init=lecun_normal data={data} --json")[1])["rows"])
        first[data] = rows.query("stat == 'q' and index == 1 and layer == 'hidden.0'").value.item()
    config = compose_config(["data=fashion_mini", "data.normalize=false"])
    from initlab.experiment.build import load_data, make_plan
    from initlab.experiment.predictions import first_batch

    data = load_data(config, "cpu")
    mean_square = float(first_batch(data, make_plan([config], data, None)).double().square().mean())
    assert first["fashion_mini data.normalize=false"] == pytest.approx(mean_square, rel=1e-6)  # σ_w = 1 there
    assert first["gaussian"] == pytest.approx(1, abs=0.1)


def test_from_python():
    frame = initlab.predict("tanh", "he_normal", depth=50, width=128)
    assert frame.attrs["phase"] == "chaotic"
    assert list(frame.columns) == ["step", "layer", "index", "stat", "value", "source"]
    assert set(frame.source) == {"predicted"}
    assert "predict" in initlab.__all__


# ---- grids


GRID = "act=tanh,relu,gelu init=glorot_normal,he_normal,critical depth=10,30,100"


def test_a_grid_is_ranked(run):
    code, out, err = run(f"{GRID} --csv all.csv")
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    assert header.split()[:4] == ["act", "init", "depth", "score"]
    frame = pd.read_csv("all.csv")
    assert len(frame) == 27
    assert frame.score.is_monotonic_decreasing
    assert [line.split()[:3] for line in lines[:27]] == frame[["act", "init", "depth"]].astype(str).values.tolist()
    place = frame.set_index(["act", "init", "depth"]).score
    for depth in (10, 30, 100):
        assert place["relu", "he_normal", depth] > place["relu", "glorot_normal", depth] + 1
        assert place["gelu", "critical", depth] > place["gelu", "glorot_normal", depth] + 1
    assert place["tanh", "glorot_normal", 100] > place["tanh", "he_normal", 100] + 1
    gelu = frame[(frame.act == "gelu") & (frame.init == "critical")]
    assert gelu.phase.tolist() == ["critical"] * 3
    assert gelu.chi_1.tolist() == pytest.approx([1.0] * 3, abs=1e-9)


@pytest.mark.parametrize("model", ["mlp", "cnn model.downsample=0 width=8", "resmlp width=16"])
def test_a_cell_scores_the_same_alone_and_in_a_grid(run, model):
    line = f"model={model} act=tanh,elu init=he_normal,orthogonal depth=2,4"
    together = json.loads(run(f"{line} --json")[1])["cells"]
    assert len(together) == 8
    for cell in together:
        named = " ".join(f"{key}={cell[key]}" for key in ("act", "init", "depth"))
        others = json.loads(run(f"model={model} {named},1 --json")[1])["cells"]
        alone = next(one for one in others if one["depth"] == cell["depth"])
        assert alone["score"] is not None
        for name in ("score", "contrast", "gradient_range", "q", "chi_1"):
            assert alone[name] == (cell[name] if cell[name] is None else pytest.approx(cell[name], rel=1e-9)), name


def test_a_score_is_what_the_formula_says():
    """ReLU under He: gradients keep their size, and correlations climb by the closed form."""
    row = rank("relu", "he_normal", 8, 64).iloc[0]

    def step(c: float) -> float:
        return (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi

    unrelated, alike = 0.0, 0.9
    for _ in range(7):
        unrelated, alike = step(unrelated), step(alike)
    assert row.gradient_range == pytest.approx(0, abs=1e-9)
    assert row.contrast == pytest.approx((alike - unrelated) / 0.9, rel=1e-6)
    assert row.score == pytest.approx(math.log10(row.contrast), abs=1e-9)


def test_lists_ranges_and_globs_as_in_train(run):
    cells = json.loads(run("-m init=glob(he_*) depth=range(2,4) act=swish seed=0,1,2 optim.lr=0.1,1 --json")[1])[
        "cells"
    ]
    assert sorted((cell["init"], cell["depth"], cell["act"]) for cell in cells) == [
        (init, depth, "silu") for init in ("he_normal", "he_uniform") for depth in (2, 3)
    ]


def test_what_cannot_be_ranked_says_why(run):
    code, out, err = run("init=dirac,ones,zeros,he_normal depth=3")
    assert (code, err) == (0, "")
    assert "dirac needs convolutions" in out
    assert "1 without a score: theory has no answer" in out
    assert "1 without a score: nothing gets through" in out
    assert out.splitlines()[1].split()[:2] == ["tanh", "he_normal"]


def test_other_axes_have_columns(run):
    header = run("init.gain=0.5,1,2 width=16,32")[1].splitlines()[0].split()
    assert header[:5] == ["act", "init", "depth", "init.gain", "width"]


@pytest.mark.parametrize(
    "line",
    [
        "act=tanh,leaky_relu init=he_normal,siren depth=3,10 seed=0,1",
        "act=leaky_relu act.negative_slope=0.1,0.2 init=he_normal init.gain=1,2 width=[4,4] depth=2",
        "model=cnn,resmlp init=glob(he*) optim=adam optim.lr=0.1,1",
        "experiment=wandb_five_methods",
    ],
)
def test_composed_apart_is_composed_whole(monkeypatch, line):
    apart = [config.plain() for config in compose_grid(line.split())[0]]
    monkeypatch.setattr(Composer, "values", lambda self, job: None)
    assert apart == [config.plain() for config in compose_grid(line.split())[0]]
    assert len(apart) > 1


# ---- the map


def test_the_map_is_theory(run, tmp_path):
    code, out, err = run("--map act=tanh --sigma-b 0..1 --sigma-w 0.5..4 --points 9")
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "outputs" / "phases-tanh.csv")
    assert len(table) == 81
    assert sorted(table.sigma_w.unique()) == pytest.approx(np.linspace(0.5, 4, 9).tolist())
    for row in table.sample(20, random_state=0).to_dict("records"):
        point = fixed_point("tanh", row["sigma_w"], row["sigma_b"])
        assert row["phase"] == point.phase
        for name in ("q_star", "chi_1", "c_star", "xi_c", "trainable_depth"):
            assert row[name] == pytest.approx(getattr(point, name), rel=1e-3, abs=1e-9), (name, row)
        assert row["critical_sigma_w"] == pytest.approx(critical("tanh", sigma_b=row["sigma_b"]).sigma_w, rel=1e-9)
    # the line parts the phases
    for bias, rows in table.groupby("sigma_b"):
        edge = rows.critical_sigma_w.iloc[0]
        off = rows[(rows.sigma_w - edge).abs() > 1e-6]
        assert (off.phase == np.where(off.sigma_w < edge, "ordered", "chaotic")).all(), bias
    assert "outputs/phases-tanh.html" in out
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_the_page_needs_no_network(run, tmp_path):
    run("--map act=gelu --points 5 init=he_normal,zeros --out there.html")
    page = (tmp_path / "there.html").read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", page)
    assert "default-src 'none'" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert data["marks"] == [
        {"name": "he_normal", "x": pytest.approx(2**0.5), "y": 0},
        {"name": "zeros", "x": 0, "y": 0},
    ]
    assert data["repelling"]
    assert (tmp_path / "there.csv").exists()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no browser")
@pytest.mark.slow
def test_the_page_draws(run, tmp_path):
    from selenium import webdriver

    run("--map act=tanh --points 20 init=he_normal")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
        browser.get(f"file://{tmp_path}/outputs/phases-tanh.html")
        seen: list = []
        for _ in range(50):
            seen = browser.execute_script("return (document.getElementById('map').data || []).map((t) => t.type)")
            if seen:
                break
            time.sleep(0.2)
        assert seen == ["heatmap", "scatter", "scatter", "scatter"]
        for name in ("chi_1", "q_star", "c_star", "xi_c"):
            browser.execute_script(
                "const c = document.getElementById('quantity'); c.value = arguments[0];"
                "c.dispatchEvent(new Event('change'))",
                name,
            )
            z = browser.execute_script("return document.getElementById('map').data[0].z.flat()")
            assert len([v for v in z if v is not None]) >= 380, name
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


# ---- bad input


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("act=tnh", "act=tnh is unknown. Did you mean 'tanh'?"),
        ("init=he_norml", "Did you mean 'he_normal'"),
        ("depht=3", "depht is not a key. Did you mean 'depth'?"),
        ("depth=0", "depth=0 must be a whole number"),
        ("init.sigma_b=-1", "init.sigma_b=-1 must be a standard deviation"),
        ("init=dirac", "dirac needs convolutions"),
        ("init=lsuv", "has no theory here"),
        ("data=gausian", "Did you mean 'gaussian'?"),
        ("tanh", "write act=tanh"),
        ("act=custom act.target=nowhere:phi", "nowhere"),
        ("model=custom model.target=nowhere:net", "nowhere"),
        ("train.batch_size=100000", "train.batch_size=100000 is more than"),
        ("depth=2,x", "depth=x"),
        ("--csv no/such/place.csv", "--csv no/such/place.csv cannot be written"),
        ("--points 5", "add --map"),
        ("--sigma-b 0..1", "add --map"),
        ("--map act=tnh", "act=tnh is unknown"),
        ("--map act=tanh,relu", "a map is of one activation"),
        ("--map --sigma-w -1..2", "--sigma-w -1..2 goes below 0"),
        ("--map --sigma-b 2..1", "--sigma-b 2..1 must go up"),
        ("--map --sigma-b 0", "--sigma-b 0 is not a range"),
        ("--map --sigma-b 0..inf", "--sigma-b 0..inf is not a range"),
        ("--map --points 1", "--points 1 must lie between"),
        ("--map --points 3 --out map.png", "must end in .html"),
        ("--map --points 3 --out no/map.html", "There is no directory no"),
        ("--map model=torchvision", "no act= to map"),
        ("--bogus", "No such option: --bogus"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, line, says):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert err.startswith("initlab: ")
    assert says in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
