"""What theory says of every network of an ensemble at step 0, on the very batch that its first row is measured on.

Training measures there what theory predicts, but for the Jacobians: they are measured here, where `log.jacobian` asks
for them, and predicted only for the layers where they are measured.
"""

import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from initlab.activations import Activation
from initlab.config import Config
from initlab.data import Dataset, batches
from initlab.diagnostics import jacobians
from initlab.errors import UserError
from initlab.experiment.build import scheme_arguments
from initlab.initialize import plan as plan_of
from initlab.initialize import request
from initlab.prediction import predicted_rows
from initlab.schemes import SCHEMES
from initlab.training import TrainingPlan

LayerRow = tuple[int, str, int, str, float, str]


@dataclass(frozen=True)
class Forecast:
    """Rows (step 0, layer, index, stat, value, source), and a line for the log where there is something to say.

    `trainable_depth` is for plain chains: about 6 ξ_c, infinite at criticality.
    """

    rows: tuple[LayerRow, ...] = ()
    remark: str = ""
    trainable_depth: float | None = None


def predict_first_steps(
    configs: Sequence[Config], modules: Sequence[nn.Module], data: Dataset, act: Activation | None, plan: TrainingPlan
) -> list[Forecast]:
    """Return one forecast per network; networks that differ in their seeds or rates alone share one.

    Nothing is forecast where step 0 is not recorded, or theory has no answer. A forecast that fails costs the network
    nothing but its forecast, and says so in the log.
    """
    if 0 not in plan.records:
        return [Forecast() for _ in configs]
    inputs = first_batch(data, plan)
    known: dict[str, Forecast] = {}
    for config, module in zip(configs, modules, strict=True):
        key = prediction_key(config)
        if key not in known:
            known[key] = predict_one_network(module, scheme_arguments(config, act), inputs, act, data.classes)
    return [
        add_jacobians(known[prediction_key(config)], module, inputs if config.log.jacobian else None)
        for config, module in zip(configs, modules, strict=True)
    ]


def add_jacobians(found: Forecast, module: nn.Module, inputs: Tensor | None) -> Forecast:
    """Measure the Jacobians on these inputs, None for not at all, and leave out those that are only predicted.

    A measurement that fails costs the network nothing but its Jacobians, and says so in the log.
    """
    measured: list[LayerRow] = []
    remarks = [found.remark] if found.remark else []
    if inputs is not None:
        try:
            measured = list(jacobians(module, inputs).itertuples(index=False, name=None))
        except Exception:  # a bug here must not cost anybody a training
            remarks.append(f"no Jacobians, for their measurement failed:\n{traceback.format_exc()}")
        else:
            if not measured:
                remarks.append("no Jacobians: no single sample of this network can be differentiated at this cost")
    there = {row[1:4] for row in measured}
    rows = [row for row in found.rows if not row[3].startswith("jacobian_") or row[1:4] in there]
    return Forecast((*rows, *measured), "\n".join(remarks), found.trainable_depth)


def first_batch(data: Dataset, plan: TrainingPlan) -> Tensor:
    """Return the inputs of step 0, as the loop prepares them."""
    rows = next(batches(len(data.train_x), plan.batch_size, seed=plan.data_seed, device=data.train_x.device))
    return data.prepare(data.train_x.index_select(0, rows), plan.dtype)


def prediction_key(config: Config) -> str:
    """Return what decides a forecast inside one ensemble, whose members share architecture and data."""
    return json.dumps([config.init, config.act], sort_keys=True, default=str)


def predict_one_network(
    module: nn.Module, arguments: dict[str, Any], inputs: Tensor, act: Activation | None, classes: int | None
) -> Forecast:
    """Return the forecast of one network; `arguments` are those of its scheme."""
    if arguments["scheme"] not in (*SCHEMES, "custom"):
        return Forecast(remark=f"no forecast: init={arguments['scheme']} looks at more than theory knows")
    try:
        tasks = plan_of(module, request(arguments.pop("scheme"), **arguments))
        frame = predicted_rows(module, tasks, inputs, act=act, classes=classes)
    except UserError as reason:  # a φ that jumps, say: the network trains all the same
        return Forecast(remark=f"no forecast: {reason}")
    except Exception:  # a bug here must not cost anybody a training
        return Forecast(remark=f"no forecast, for it failed:\n{traceback.format_exc()}")
    if frame.empty:
        return Forecast(remark="no forecast: theory has no answer for this network")
    depth = frame.attrs.get("trainable_depth")
    return Forecast(tuple(frame.itertuples(index=False, name=None)), trainable_depth=depth)
