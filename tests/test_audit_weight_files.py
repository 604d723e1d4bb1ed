"""Files that an audit reads: damaged, foreign, hostile ones; and audits that compare nothing."""

import json
import os
import re
import subprocess
import sys
import zipfile
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

import initlab
from initlab.audit import as_json, as_junit, as_text, passed
from initlab.audit.weight_files import extract_state_dict, load_weight_file
from initlab.cli.main import main
from initlab.errors import UserError
from initlab.initialize import fill_
from initlab.inspection import walk
from initlab.schemes import scheme
from initlab.testing import assert_initialized


class Unknown(nn.Module):
    """A module of somebody else's: its parameters are of no kind that initlab knows."""

    def __init__(self, norm: bool = False):
        super().__init__()
        self.core = nn.Parameter(torch.randn(6, 5))
        self.factors = nn.Parameter(torch.randn(3, 4, 5))
        self.norm = nn.LayerNorm(5) if norm else None


def quiet_net():
    net = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 20))
    fill_(net, "he_normal")
    return net


# ---- nothing was checked


def int8_state():
    net = quiet_net()
    return {k: (100 * v).to(torch.int8) if v.dim() == 2 else v for k, v in net.state_dict().items()}


def spectral_state():
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.ReLU())
    return net.state_dict()


def fill(weight, **_):
    weight.fill_(0.5)


NOTHING = {
    "skipped": (quiet_net, {"skip": "*"}, "left out by only= or skip="),
    "only and skip": (quiet_net, {"only": "0.*", "skip": "*.weight", "promise": {"2.*": "zeros"}}, "no rule"),
    "unknown": (Unknown, {}, "of kinds that initlab does not know"),
    "unknown beside a norm": (lambda: Unknown(norm=True), {}, "no weight was checked"),
    "no parameters": (nn.ReLU, {}, "there are no parameters"),
    "no elements": (lambda: nn.Embedding(0, 4), {}, "without elements"),
    "spectral norm": (spectral_state, {}, "of kinds that initlab does not know"),
    "no law": (lambda: nn.Linear(3, 3), {"promise": scheme("custom", target=fill)}, "promises no law"),
    "frozen and skipped": (lambda: quiet_net().requires_grad_(False), {"skip": ["*weight", "*bias"]}, "skip="),
}


@pytest.mark.parametrize("case", NOTHING)
def test_an_audit_that_compares_nothing_does_not_pass(case):
    make, arguments, said = NOTHING[case]
    if case == "only and skip":
        said = "matched by no rule"
    given = {"promise": "he_normal", **arguments}
    promise = given.pop("promise")
    rows = initlab.audit(make(), promise, **given)
    assert not passed(rows)
    assert len(rows) == 0 or not rows.ok.all()
    last = as_text(rows).splitlines()[-1]
    assert said in last
    assert "was checked" in last
    assert json.loads(as_json(rows))["ok"] is False
    suite = ElementTree.fromstring(as_junit(rows).partition("\n")[2])
    assert int(suite.get("failures")) == len(suite.findall(".//failure")) >= 1
    assert int(suite.get("tests")) == len(suite.findall("testcase"))
    assert said in suite.find("testcase/failure").get("message")
    with pytest.raises(AssertionError, match="was checked"):
        assert_initialized(make(), promise, **given)


def test_codes_of_a_quantization_are_broken_and_not_left_out():
    rows = initlab.audit(int8_state(), "he_normal").set_index("name")
    assert rows.ok.to_dict() == {n: "norm" in n or n.startswith("1.") or "bias" in n for n in rows.index} | {
        "0.weight": False,
        "2.weight": False,
    }
    assert "quantized (int8)" in rows.reason["0.weight"]


def test_parts_that_are_chosen_may_be_checked_alone():
    # The user says so: norms or biases alone are compared, and that is a check.
    net = quiet_net()
    for given in ({"only": "*.bias"}, {"skip": ["0.weight", "2.weight"]}):
        assert passed(initlab.audit(net, "he_normal", **given))
    assert passed(initlab.audit(net, {"*.bias": "zeros"}))
    assert passed(initlab.audit(nn.BatchNorm2d(4), "he_normal"))
    assert passed(initlab.audit(nn.Sequential(Unknown(), quiet_net()), "he_normal"))


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["initlab", "audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        main()
    out, err = capsys.readouterr()
    return int(leaving.value.code or 0), out, err


def test_the_command_fails_where_nothing_was_checked(capsys, monkeypatch, tmp_path):
    code, out, _ = run(capsys, monkeypatch, "torch.nn:ReLU", "--init", "he_normal", "--junit", tmp_path / "found.xml")
    assert code == 1
    assert "nothing was checked" in out
    assert ElementTree.parse(tmp_path / "found.xml").getroot().get("failures") == "1"
    torch.save(spectral_state(), tmp_path / "w.pt")
    code, out, _ = run(capsys, monkeypatch, tmp_path / "w.pt", "--init", "he_normal", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)
    code, _, err = run(capsys, monkeypatch, tmp_path / "w.pt", "--init", "he_normal", "--only", "nothing.*")
    assert code == 2
    assert "only: 'nothing.*' matches no parameter" in err


# ---- what a file may hold


def test_a_safetensors_without_tensors(tmp_path):
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="holds no tensors"):
        load_weight_file(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["", ".weight", "a.", "a..weight"])
def test_a_parameter_without_a_name(tmp_path, name):
    torch.save({name: torch.zeros(3, 3), "b.weight": torch.zeros(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="named '"):
        initlab.audit(tmp_path / "w.pt", "zeros")


@pytest.mark.parametrize("name", ["forward", "training", "a.type", "a.b.parameters", "_modules", "a/b"])
def test_names_that_a_module_has_for_something_else(name):
    rows = initlab.audit({f"{name}.weight": torch.zeros(3, 3), name: torch.zeros(2)}, "zeros")
    assert sorted(rows.name) == sorted([f"{name}.weight", name])


def unusual(kind):
    big = 10**6
    if kind == "sparse":
        place = torch.zeros(2, 1, dtype=torch.int64)
        return torch.sparse_coo_tensor(place, torch.ones(1), (big, big), check_invariants=True)
    if kind == "compressed":
        return torch.eye(3).to_sparse_csr()
    if kind == "expanded":
        return torch.zeros(1).expand(big, big)
    if kind == "windows":
        return torch.zeros(40).as_strided((20, 20), (1, 1))
    return torch.zeros(big, big, device="meta")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "compressed", "expanded", "windows", "meta"])
@pytest.mark.parametrize("name", ["0.weight", "embed.weight", "pos_embed", "0.bias", "norm.weight", "conv.weight_v"])
def test_a_small_file_asks_for_no_more_memory_than_it_has(tmp_path, kind, name):
    # Terabytes, if anything were read element by element.
    torch.save({name: unusual(kind), "1.weight": torch.zeros(4, 4)}, tmp_path / "w.pt")
    said = {"meta": "meta device", "sparse": "sparse", "compressed": "sparse"}.get(kind, "expanded")
    if kind == "meta":
        with pytest.raises(UserError, match=said):
            initlab.audit(tmp_path / "w.pt", "zeros")
        return
    rows = initlab.audit(tmp_path / "w.pt", "zeros").set_index("name")
    assert not rows.ok[name]
    assert said in rows.reason[name]
    assert rows.ok["1.weight"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "expanded"])
def test_a_module_with_such_a_parameter_is_refused_in_one_sentence(kind):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].weight = nn.Parameter(unusual(kind), requires_grad=False)
    with pytest.raises(UserError, match=f"0.weight cannot be initialized: it is {kind}"):
        fill_(net, "he_normal")
    fill_(net, "he_normal", skip="0.*")
    assert passed(initlab.audit(net, "he_normal", skip="0.*"))
    with pytest.raises(UserError, match=f"0.weight cannot be diagnosed: it is {kind}"):
        initlab.diagnose(net, torch.zeros(2, 3))


def alone(code, *arguments):
    """Run code in a process of its own: a native crash must not end the tests."""
    program = "import sys, torch\nfrom torch import nn\nimport initlab\nfrom initlab.errors import UserError\n" + code
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_CHECK_": "3"},
    )


NAMES = {
    True: ("weight_g", "weight_v"),
    False: ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}


def test_weight_norm_of_any_dimension(tmp_path):
    # The magnitude keeps any one dimension, or none.
    state, expected = {}, {}
    for old, (g, v) in NAMES.items():
        for k, shape in enumerate([(16, 8, 5), (5, 16, 8), (64, 64), (1, 1, 1), (8, 4, 3, 3)]):
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02
            for dim in range(-1, len(shape)):
                name = f"{'old' if old else 'new'}{k}.at{dim + 1}"
                state |= {f"{name}.{g}": torch.norm_except_dim(weight, 2, dim), f"{name}.{v}": 3 * weight}
                expected[f"{name}.weight"] = float(weight.std(correction=0))
    torch.save(state, tmp_path / "w.pt")
    done = alone(
        "import json\nrows = initlab.audit(sys.argv[1], 'zeros')\nprint(json.dumps(dict(zip(rows.name, rows['std']))))",
        tmp_path / "w.pt",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == pytest.approx(expected, rel=1e-5, abs=1e-12)


MISFITS = [(16,), (1, 1, 128), (16, 8, 1), (2, 2, 2, 2), (0,), (17, 1, 1), (1, 1, 1, 1), (3, 1, 1)]


def test_a_magnitude_that_fits_no_dimension_is_no_crash(tmp_path):
    state = {}
    for old, (g, v) in NAMES.items():
        for k, magnitude in enumerate(MISFITS):
            state |= {f"{old}{k}.{g}": torch.ones(magnitude), f"{old}{k}.{v}": torch.ones(16, 8, 5)}
    torch.save(state, tmp_path / "w.pt")
    done = alone("print(len(initlab.audit(sys.argv[1], 'he_normal')))", tmp_path / "w.pt")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_module_whose_weight_norm_does_not_fit_is_refused():
    code = """
import itertools, warnings; warnings.simplefilter("ignore")
for old, shape in itertools.product((False, True), ((1, 1, 128), (3, 1, 1), (16,))):
    conv = nn.Conv1d(8, 16, 5)
    norm = torch.nn.utils.weight_norm if old else torch.nn.utils.parametrizations.weight_norm
    norm(conv, dim=2)
    magnitude = conv.weight_g if old else conv.parametrizations.weight.original0
    magnitude.data = torch.ones(shape)
    net = nn.Sequential(conv)
    rows = initlab.audit(net, "he_normal")
    assert not rows.ok[0] and "magnitude" in rows.reason[0], rows
    for do in (lambda: initlab.initialize_(net, "he_normal"), lambda: initlab.diagnose(net, torch.zeros(2, 8, 9))):
        try:
            do()
        except UserError as error:
            assert "magnitude" in str(error), error
        else:
            raise SystemExit("accepted")
"""
    done = alone(code)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("shape", [(), (7,), (0, 4), (4, 0), (7, 3), (3, 3, 3)])
def test_recurrent_weights_of_any_shape(shape):
    values = {
        "rnn.weight_hh_l0": torch.zeros(shape),
        "rnn.weight_ih_l0": torch.zeros(shape),
        "a.weight": torch.zeros(2, 2),
    }
    assert len(initlab.audit(values, "zeros")) == 3


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int32, torch.uint16, torch.bool, torch.float8_e4m3fn, torch.complex32, torch.half],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_a_weight_of_any_dtype(tmp_path, dtype):
    torch.save({"0.weight": torch.zeros(8, 8, dtype=dtype), "1.weight": torch.zeros(4, 4)}, tmp_path / "w.pt")
    rows = initlab.audit(tmp_path / "w.pt", "zeros").set_index("name")
    assert rows.ok["0.weight"] == (dtype in (torch.complex32, torch.half))
    assert rows.ok["1.weight"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("which", ["0.weight", "0.bias", "1.parametrizations.weight.original0"])
@pytest.mark.parametrize(
    "spoil", [torch.Tensor.to_sparse, lambda t: t.flatten()[:1].view([1] * t.dim()).expand(t.shape)]
)
def test_a_file_with_its_module_is_read_as_carefully(which, spoil):
    def make():
        conv = parametrizations.weight_norm(nn.Conv1d(4, 4, 3), dim=2)
        return nn.Sequential(nn.Linear(4, 4), conv)

    values = make().state_dict()
    values[which] = spoil(values[which])
    rows = initlab.audit(values, "he_normal", module=make()).set_index("name")
    name = which.replace("parametrizations.", "").replace(".original0", "")
    assert not rows.ok[name]
    assert re.search("sparse|expanded", rows.reason[name])


# ---- pickles


@pytest.mark.parametrize("version", ["2.5.1+cu121", "2.9.1", "2.10.0a0+git1234", "2.6.0"])
def test_a_torch_whose_loader_can_be_made_to_run_code_reads_no_pickle(tmp_path, monkeypatch, version):
    torch.save({"0.weight": torch.zeros(2, 2)}, tmp_path / "w.pt")
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the pickle was read"))
    with pytest.raises(UserError, match=r"safetensors.*torch 2\.10 or newer"):
        load_weight_file(tmp_path / "w.pt")
    assert list(load_weight_file(tmp_path / "w.safetensors")) == ["0.weight"]


@pytest.mark.parametrize("version", ["2.10.0", "2.11.0+cpu", "3.0"])
def test_a_mended_torch_reads_them(tmp_path, monkeypatch, version):
    torch.save({"0.weight": torch.zeros(2, 2)}, tmp_path / "w.pt")
    monkeypatch.setattr(torch, "__version__", version)
    assert list(load_weight_file(tmp_path / "w.pt")) == ["0.weight"]


class Own(nn.Module):
    """Pickled as a whole, it names this module."""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("what", "named"),
    [
        (Own(), "test_audit_weight_files.Own"),
        ({"w": torch.zeros(1), "run": os.system}, "posix.system"),
        ({"w": torch.zeros(1), "x": [print, eval]}, "builtins.eval"),
    ],
)
def test_what_is_not_allowed_is_named_in_one_line(tmp_path, legacy, what, named):
    torch.save(what, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as refused:
        load_weight_file(tmp_path / "w.pt")
    said = str(refused.value)
    assert named in said or (legacy and named.rpartition(".")[2] in said) or (legacy and "print" in said)
    assert "safetensors" in said
    assert said.isprintable()
    assert "weights_only" not in said
    assert len(said) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02junk", b"PK\x03\x04" + bytes(100), b"\x1b[31mred\n", os.urandom(5000)]
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "bin"])
def test_whatever_is_in_a_file_is_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_weight_file(path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_of_holes_is_not_read(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**43)
    with pytest.raises(UserError, match=r"8192\.0 GiB and this machine has"):
        load_weight_file(tmp_path / name)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    torch.save({"0.weight": torch.zeros(1000, 1000)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as given,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for entry in given.infolist():
            out.writestr(entry.filename, given.read(entry))
    with pytest.raises(UserError, match="compressed"):
        load_weight_file(tmp_path / "z.pt")


INNER = {"body.weight": torch.zeros(3, 2), "body.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    "found",
    [
        {"generator": INNER},
        {"params_ema": INNER},
        {"state_dict": INNER, "epoch": 3, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}},
        {"model": INNER, "optimizer_states": [{"m": torch.zeros(2)}], "loops": {"fit": {"t": torch.zeros(1)}}},
        {"epoch": torch.tensor(3), "net_g": INNER},
        {"model": {"state_dict": INNER}},
        {"ema": {"module": {"model": INNER}}, "lr_schedulers": [{"w": torch.zeros(1)}]},
        {"state_dict": INNER, "teacher": INNER},
        {"checkpoint": {"weights": INNER | {"_extra_state": {"scale": torch.zeros(2)}}}},
    ],
)
def test_a_state_dict_is_found_at_any_depth(found):
    assert list(extract_state_dict(found, "it")) == list(INNER)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"generator": INNER, "discriminator": INNER}, ["several", "generator, discriminator", "safetensors"]),
        ({"params": INNER, "params_ema": INNER}, ["several", "params, params_ema"]),
        ({"epoch": 3, "args": {"lr": 1}}, ["no state_dict", "epoch, args"]),
        ({"optimizer": {"m": torch.zeros(1)}}, ["no state_dict", "optimizer"]),
        ({}, ["no tensors"]),
        ([torch.zeros(1)], ["a list"]),
        (torch.zeros(1), ["a Tensor"]),
    ],
)
def test_else_the_keys_are_named(found, named):
    with pytest.raises(UserError) as refused:
        extract_state_dict(found, "it")
    assert all(words in str(refused.value) for words in named)


def test_a_real_module_is_read_as_before(tmp_path):
    torch.save({"generator": quiet_net().state_dict()}, tmp_path / "g.pt")
    assert passed(initlab.audit(tmp_path / "g.pt", "he_normal"))
    assert passed(initlab.audit(tmp_path / "g.pt", "he_normal", module=quiet_net()))
    assert {p.kind for p in walk(quiet_net())} == {"dense", "bias", "norm_scale", "norm_shift"}
