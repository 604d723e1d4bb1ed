"""Draw one parameter's values and put them where they belong: in place, rounded, sharded, or into what holds them."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from initlab.errors import UserError
from initlab.initialize.gate_biases import fill_gates
from initlab.initialize.plan import FillTask, filled_shape, padding_row
from initlab.inspection import Block, Parameter
from initlab.schemes import SCHEMES, Scheme
from initlab.system.random_streams import generator as keyed

SQRT_HALF = math.sqrt(0.5)
"""Factor on the real and on the imaginary part, so that E|w|² is the promised variance."""

TOLERANCE = 64
"""A held weight may differ from what was drawn by this many units of its format's rounding, relative to the largest."""


def fill_parameter(task: FillTask, seed: int, drawn: Tensor | None = None) -> None:
    """Give a task's parameter its values; `drawn` are those of a rehearsal, if there was one."""
    parameter = task.parameter
    if task.rule == "constant" and parameter.parametrization is None and not task.gates:
        parameter.tensor.detach().fill_(parameter.start)
        return
    if drawn is None and _is_float32_on_cpu(parameter):
        draw_values(task, seed, parameter.tensor.detach())
        return
    values = draw_values(task, seed) if drawn is None else drawn
    if parameter.parametrization is not None:
        parameter.parametrization.write(values.to(parameter.tensor))
    elif hasattr(parameter.tensor, "full_tensor"):
        _write_shard(parameter.tensor.detach(), values)
    else:
        parameter.tensor.detach().copy_(values)


def draw_and_check(task: FillTask, seed: int) -> Tensor | None:
    """Draw, without writing, what could fail: a user's own scheme, and a weight that other parameters must hold.

    Raises:
        UserError: a parametrization cannot hold the weight; and whatever a user's own scheme raises.
    """
    own = task.rule == "scheme" and task.scheme is not None and task.scheme.name not in SCHEMES
    held = task.parameter.parametrization
    if not task.writes or (held is None and not own):
        return None
    drawn = draw_values(task, seed)
    if held is not None:
        wanted = drawn.to(task.parameter.tensor)
        _check_parametrization(task, wanted, held.simulate)
    return drawn


def _check_parametrization(task: FillTask, wanted: Tensor, rehearse: Callable[[Tensor], Tensor]) -> None:
    parameter, held = task.parameter, task.parameter.parametrization
    assert held is not None
    name = task.scheme.name if task.scheme else "constant"
    remedy = "initialize the module before the parametrization is registered, or leave it out with skip="
    try:
        effective = rehearse(wanted)
    except (RuntimeError, ValueError, NotImplementedError) as reason:
        first = str(reason).splitlines()[0].rstrip(".")
        raise UserError(f"{parameter.name}: its {held.label} takes no init={name} weight ({first}): {remedy}.") from reason
    off = float((effective - wanted).abs().max()) if wanted.numel() else 0.0
    if not off <= TOLERANCE * torch.finfo(wanted.dtype).eps * float(wanted.abs().max()):
        how = "makes it NaN" if math.isnan(off) else f"would change it by up to {off:.2g}"
        raise UserError(f"{parameter.name}: its {held.label} cannot hold an init={name} weight, it {how}: {remedy}.")


def draw_values(task: FillTask, seed: int, out: Tensor | None = None) -> Tensor:
    """Fill `out`, a float32 CPU tensor of the parameter's shape (a new one if None; complex64 for complex ones)."""
    parameter = task.parameter
    if out is None:
        dtype = torch.complex64 if parameter.tensor.dtype.is_complex else torch.float32
        out = torch.empty(parameter.shape, dtype=dtype, device="cpu")
    with torch.no_grad():
        generator = keyed("weights", seed, parameter.name)
        if task.rule == "constant":
            out.fill_(parameter.start)
        elif task.rule == "normal":
            _normal(out, task.sigma_b, generator)
        elif task.scheme is not None and task.rule == "bias":
            for block in task.blocks:
                _bias(block, out, task.scheme, generator)
        elif task.scheme is not None:
            _weight(task, task.scheme, out, generator)
        if task.gates:
            fill_gates(parameter, out, task.gates, keyed("gates", seed, parameter.name))
    return out


def _is_float32_on_cpu(parameter: Parameter) -> bool:
    tensor = parameter.tensor
    ordinary = parameter.parametrization is None and not hasattr(tensor, "full_tensor")
    return ordinary and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _normal(out: Tensor, std: float, generator: Generator) -> None:
    if not out.is_complex():
        nn.init.normal_(out, 0, std, generator=generator)
        return
    parts = torch.empty((*out.shape, 2), dtype=torch.float32, device="cpu")
    out.copy_(torch.view_as_complex(nn.init.normal_(parts, 0, SQRT_HALF * std, generator=generator)))


def _bias(block: Block, out: Tensor, scheme: Scheme, generator: Generator) -> None:
    view = block.view(out)
    if not out.is_complex():
        scheme.bias_(view, fans=block.fans, generator=generator)
        return
    parts = [scheme.bias_(torch.empty(view.shape), fans=block.fans, generator=generator) for _ in range(2)]
    view.copy_(SQRT_HALF * torch.complex(*parts))


def _weight(task: FillTask, scheme: Scheme, out: Tensor, generator: Generator) -> None:
    first, zero = task.blocks[0], padding_row(task.parameter)
    same = len(set(task.roles)) == 1 and len(set(task.gains)) == 1
    if scheme.elementwise and same and all(block.fans == first.fans for block in task.blocks):
        # Independent elements of one law: the stored layout is as good as the blocks', and one call is faster.
        _fill(scheme, out, first, task.gains[0], task.roles[0], generator)
    elif zero is not None:
        # The other rows alone are what is orthogonal, sparse, ….
        others = out.new_empty(filled_shape(task.parameter, first))
        _fill(scheme, others, first, task.gains[0], task.roles[0], generator)
        out[torch.arange(len(out)) != zero] = others.T
    else:
        for block, gain, role in zip(task.blocks, task.gains, task.roles, strict=True):
            _fill(scheme, block.view(out), block, gain, role, generator)
    if zero is not None:
        out[zero].zero_()


def _fill(scheme: Scheme, view: Tensor, block: Block, gain: float, role: str, generator: Generator) -> None:
    if not view.is_complex():
        scheme.fill_(view, fans=block.fans, gain=gain, role=role, generator=generator)
        return
    if scheme.elementwise and not scheme.law(block.fans, gain, role, block.shape).deterministic:
        parts = torch.empty((*view.shape, 2), dtype=torch.float32, device="cpu")
        scheme.fill_(parts, fans=block.fans, gain=gain, role=role, generator=generator)
        view.copy_(torch.view_as_complex(parts.mul_(SQRT_HALF)))
    else:
        real = torch.empty(view.shape, dtype=torch.float32, device="cpu")
        view.copy_(scheme.fill_(real, fans=block.fans, gain=gain, role=role, generator=generator))


def _write_shard(sharded: Tensor, whole: Tensor) -> None:
    # Every rank has drawn the whole parameter, so that its shard is what one process would hold; nothing is sent.
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(sharded, DTensor)
    mesh, local = sharded.device_mesh, sharded.to_local()
    replicated = DTensor.from_local(whole.to(local), mesh, [Replicate()] * mesh.ndim, run_check=False)
    local.copy_(replicated.redistribute(mesh, sharded.placements).to_local())
