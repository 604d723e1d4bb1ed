"""Two processes: every rank gets its shard of exactly the values that one process draws."""

import subprocess
import sys

import pytest
import torch
import torch.distributed
from torch import nn

import initlab

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="no gloo"
)

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3)
        self.grouped = nn.Conv2d(10, 15, 3, groups=5)
        self.attention = nn.MultiheadAttention(12, 3)
        self.table = nn.Embedding(11, 12, padding_idx=3)
        self.norm = nn.LayerNorm(12)
        self.odd = nn.Linear(12, 7)
        self.one = nn.Linear(7, 1)
        self.half = nn.Linear(9, 13).bfloat16()
        self.tied = nn.Linear(12, 11, bias=False)
"""

WORKER = (
    MODEL
    + """
import sys
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
import initlab

how, scheme, store, out, rank = *sys.argv[1:5], int(sys.argv[5])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(100 + rank)  # what the ranks would draw by themselves differs
net = Net()
if how == "fsdp":
    from torch.distributed.fsdp import fully_shard
    for part in (net.attention, net.odd):
        fully_shard(part, mesh=mesh)
    fully_shard(net, mesh=mesh)
else:
    placements = {"rows": [Shard(0)], "columns": [Shard(1)], "whole": [Replicate()]}[how]
    for module in net.modules():
        for name, p in list(module._parameters.items()):
            if p is not None and (how != "columns" or p.dim() > 1):
                module._parameters[name] = nn.Parameter(distribute_tensor(p.detach(), mesh, placements))
before = {name: p for name, p in net.named_parameters()}
rows = initlab.initialize_(net, scheme, seed=5, sigma_b=0.1)
assert all(before[name] is p for name, p in net.named_parameters())
sharded = sum(hasattr(p, "full_tensor") for p in net.parameters())
assert sharded > 5, sharded
if how in ("fsdp", "rows"):
    assert net.odd.weight.to_local().shape[0] in (3, 4), net.odd.weight.to_local().shape
assert bool(initlab.audit(net, scheme, sigma_b=0.1).ok.all())
gathered = {
    name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for name, p in net.named_parameters()
}
torch.save((gathered, initlab.fingerprint(net), rows.fingerprint.tolist()), f"{out}.{rank}")
dist.destroy_process_group()
"""
)


ALSO = [("fsdp", "orthogonal"), ("rows", "he_normal"), ("columns", "he_normal"), ("whole", "zeros")]


@pytest.mark.parametrize(
    ("how", "scheme"),
    [
        ("fsdp", "he_normal"),
        *(pytest.param(how, scheme, marks=pytest.mark.slow) for how, scheme in ALSO),
    ],
)
def test_gathered_weights_equal_those_of_one_process_bit_for_bit(tmp_path, how, scheme):
    place = {"Net": nn.Module}
    exec(MODEL, place)
    net = place["Net"]()
    rows = initlab.initialize_(net, scheme, seed=5, sigma_b=0.1)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        WORKER,
        how,
        scheme,
        str(tmp_path / "store"),
        str(tmp_path / "out"),
    ]
    workers = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in (0, 1)
    ]
    said = [worker.communicate(timeout=200)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)
    for rank in (0, 1):
        gathered, mark, marks = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        assert mark == initlab.fingerprint(net)
        assert marks == rows.fingerprint.tolist()
        for name, p in net.named_parameters():
            assert gathered[name].dtype == p.dtype
            assert torch.equal(gathered[name], p.detach()), name
