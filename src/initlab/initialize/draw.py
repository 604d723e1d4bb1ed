"""Draw one parameter's values and write them: in place, rounded, sharded, or through a parametrization."""

import math

import torch
from torch import Generator, Tensor, nn

from initlab.errors import UserError
from initlab.initialize.gate_biases import fill_gates
from initlab.initialize.plan import FillTask, filled_shape, padding_row
from initlab.inspection import Block, Parameter
from initlab.inspection.parametrized import INITIALIZE_FIRST
from initlab.schemes import SCHEMES, Scheme
from initlab.system.random_streams import generator as keyed

SQRT_HALF = math.sqrt(0.5)
"""Factor on the real and on the imaginary part, so that E|w|² is the promised variance."""

TOLERANCE = 64
"""Largest change of a parametrized weight, in units of its format's rounding relative to the largest element."""


def fill_parameter(task: FillTask, seed: int, drawn: Tensor | None = None) -> None:
    """Write a task's values into its parameter.

    Args:
        task: what to write.
        seed: the init seed.
        drawn: the values, where `draw_and_check` has drawn them.
    """
    parameter = task.parameter
    tensor = parameter.tensor.detach()
    if task.rule == "constant" and parameter.parametrization is None and not task.gates:
        tensor.fill_(parameter.start)
    elif drawn is None and _is_float32_on_cpu(parameter):
        draw_values(task, seed, tensor)
    else:
        values = draw_values(task, seed) if drawn is None else drawn
        if parameter.parametrization is not None:
            parameter.parametrization.write(values.to(tensor))
        elif hasattr(tensor, "full_tensor"):
            _write_shard(tensor, values)
        else:
            tensor.copy_(values)


def draw_and_check(task: FillTask, seed: int) -> Tensor | None:
    """Draw, without writing, what could fail: a user's own scheme, and a parametrized weight; None for other tasks.

    Raises:
        UserError: a parametrization cannot represent the weight; and whatever a user's own scheme raises.
    """
    own = task.rule == "scheme" and task.scheme is not None and task.scheme.name not in SCHEMES
    parametrized = task.parameter.parametrization is not None
    if not task.is_filled or not (parametrized or own):
        return None
    drawn = draw_values(task, seed)
    if parametrized:
        _check_parametrization(task, drawn.to(task.parameter.tensor))
    return drawn


def _check_parametrization(task: FillTask, drawn: Tensor) -> None:
    parametrization = task.parameter.parametrization
    assert parametrization is not None
    subject = f"{task.parameter.name}: its {parametrization.label}"
    weight = f"init={task.scheme.name if task.scheme else 'constant'} weight"
    remedy = f"{INITIALIZE_FIRST}, or leave it out with skip="
    try:
        effective = parametrization.simulate(drawn)
    except (RuntimeError, ValueError, NotImplementedError) as reason:
        first_line = str(reason).splitlines()[0].rstrip(".")
        raise UserError(f"{subject} takes no {weight} ({first_line}): {remedy}.") from reason
    change = float((effective - drawn).abs().max()) if drawn.numel() else 0.0
    if not change <= TOLERANCE * torch.finfo(drawn.dtype).eps * float(drawn.abs().max()):
        effect = "makes it NaN" if math.isnan(change) else f"would change it by up to {change:.2g}"
        raise UserError(f"{subject} cannot hold an {weight}, it {effect}: {remedy}.")


def draw_values(task: FillTask, seed: int, out: Tensor | None = None) -> Tensor:
    """Draw a parameter's values on the CPU.

    Args:
        task: what to draw.
        seed: the init seed.
        out: float32 tensor of the parameter's shape to fill; default: a new one (complex64 for complex parameters).
    """
    parameter = task.parameter
    if out is None:
        dtype = torch.complex64 if parameter.tensor.dtype.is_complex else torch.float32
        out = torch.empty(parameter.shape, dtype=dtype, device="cpu")
    with torch.no_grad():
        generator = keyed("weights", seed, parameter.name)
        if task.rule == "constant":
            out.fill_(parameter.start)
        elif task.rule == "normal":
            _fill_normal(out, task.sigma_b, generator)
        elif task.scheme is not None and task.rule == "bias":
            for block in task.blocks:
                _fill_bias(block, out, task.scheme, generator)
        elif task.scheme is not None:
            _fill_weight(task, task.scheme, out, generator)
        if task.gates:
            fill_gates(parameter, out, task.gates, keyed("gates", seed, parameter.name))
    return out


def _is_float32_on_cpu(parameter: Parameter) -> bool:
    tensor = parameter.tensor
    ordinary = parameter.parametrization is None and not hasattr(tensor, "full_tensor")
    return ordinary and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _parts(view: Tensor) -> Tensor:
    # Real and imaginary parts along a last axis, to be filled and put together by `view_as_complex`.
    return torch.empty((*view.shape, 2), dtype=torch.float32, device="cpu")


def _fill_normal(out: Tensor, std: float, generator: Generator) -> None:
    if not out.is_complex():
        nn.init.normal_(out, 0, std, generator=generator)
    else:
        out.copy_(torch.view_as_complex(nn.init.normal_(_parts(out), 0, SQRT_HALF * std, generator=generator)))


def _fill_bias(block: Block, out: Tensor, scheme: Scheme, generator: Generator) -> None:
    view = block.view(out)
    if not out.is_complex():
        scheme.bias_(view, fans=block.fans, generator=generator)
        return
    parts = [scheme.bias_(torch.empty(view.shape), fans=block.fans, generator=generator) for _ in range(2)]
    view.copy_(SQRT_HALF * torch.complex(*parts))


def _fill_weight(task: FillTask, scheme: Scheme, out: Tensor, generator: Generator) -> None:
    first, zero = task.blocks[0], padding_row(task.parameter)
    same = len(set(task.roles)) == 1 and len(set(task.gains)) == 1
    if scheme.elementwise and same and all(block.fans == first.fans for block in task.blocks):
        # Independent elements of one law: their order does not matter, and one call is faster.
        _fill_block(scheme, out, first, task.gains[0], task.roles[0], generator)
    elif zero is not None:
        # The rows without the padding are orthogonal, sparse, ….
        others = out.new_empty(filled_shape(task.parameter, first))
        _fill_block(scheme, others, first, task.gains[0], task.roles[0], generator)
        out[torch.arange(len(out)) != zero] = others.T
    else:
        for block, gain, role in zip(task.blocks, task.gains, task.roles, strict=True):
            _fill_block(scheme, block.view(out), block, gain, role, generator)
    if zero is not None:
        out[zero].zero_()


def _fill_block(scheme: Scheme, view: Tensor, block: Block, gain: float, role: str, generator: Generator) -> None:
    def fill(tensor: Tensor) -> Tensor:
        return scheme.fill_(tensor, fans=block.fans, gain=gain, role=role, generator=generator)

    if not view.is_complex():
        fill(view)
    elif scheme.elementwise and not scheme.law(block.fans, gain, role, block.shape).deterministic:
        view.copy_(torch.view_as_complex(fill(_parts(view)).mul_(SQRT_HALF)))
    else:
        view.copy_(fill(torch.empty(view.shape, dtype=torch.float32, device="cpu")))


def _write_shard(sharded: Tensor, whole: Tensor) -> None:
    # Every rank draws the whole parameter, so that its shard is that of one process; nothing is sent.
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(sharded, DTensor)
    mesh, local = sharded.device_mesh, sharded.to_local()
    replicated = DTensor.from_local(whole.to(local), mesh, [Replicate()] * mesh.ndim, run_check=False)
    local.copy_(replicated.redistribute(mesh, sharded.placements).to_local())
