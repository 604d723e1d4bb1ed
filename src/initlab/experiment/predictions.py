"""What theory predicts of every network of an ensemble at step 0, on the batch that its first row is measured on.

Training measures there what theory predicts, but for the Jacobians: they are measured here, where `log.jacobian` asks
for them, and predicted only for the layers where they are measured.
"""

import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from initlab.records import LayerRow
from initlab.schemes import SCHEMES
from initlab.training import TrainingPlan


@dataclass(frozen=True)
class Forecast:
    """What theory predicts of one network.

    Attributes:
        rows: of step 0, predicted, and the Jacobians as measured.
        remark: a line for the log, where there is something to report.
        trainable_depth: of plain chains: about 6 ξ_c, infinite at criticality.
    """

    rows: tuple[LayerRow, ...] = ()
    remark: str = ""
    trainable_depth: float | None = None


def predict_first_steps(
    configs: Sequence[Config], modules: Sequence[nn.Module], data: Dataset, act: Activation | None, plan: TrainingPlan
) -> list[Forecast]:
    """Return one forecast per network; networks that differ only in their seeds or rates share one.

    The forecast is empty where step 0 is not recorded, or theory has no answer. A forecast that fails costs the network
    nothing else, and is reported in the log.
    """
    if 0 not in plan.records:
        return [Forecast() for _ in configs]
    inputs = first_batch(data, plan)
    shared: dict[str, Forecast] = {}
    forecasts = []
    for config, module in zip(configs, modules, strict=True):
        # Members of one ensemble share architecture and data.
        key = json.dumps([config.init, config.act], sort_keys=True, default=str)
        if key not in shared:
            shared[key] = predict_one_network(module, scheme_arguments(config, act), inputs, act, data.classes)
        forecasts.append(add_jacobians(shared[key], module, inputs if config.log.jacobian else None))
    return forecasts


def add_jacobians(forecast: Forecast, module: nn.Module, inputs: Tensor | None) -> Forecast:
    """Measure the Jacobians on these inputs, None for not at all, and leave out those that are only predicted.

    A measurement that fails costs the network only its Jacobians, and is reported in the log.
    """
    measured: list[LayerRow] = []
    remarks = [forecast.remark] if forecast.remark else []
    if inputs is not None:
        try:
            measured = [LayerRow(*row) for row in jacobians(module, inputs).itertuples(index=False)]
        except Exception:  # a bug here must not cost a training
            remarks.append(f"no Jacobians, because their measurement failed:\n{traceback.format_exc()}")
        else:
            if not measured:
                remarks.append("no Jacobians: no single sample of this network can be differentiated at this cost")
    layers = {row[1:4] for row in measured}
    rows = [row for row in forecast.rows if not row.stat.startswith("jacobian_") or row[1:4] in layers]
    return replace(forecast, rows=(*rows, *measured), remark="\n".join(remarks))


def first_batch(data: Dataset, plan: TrainingPlan) -> Tensor:
    """Return the inputs of step 0, as the loop prepares them."""
    rows = next(batches(len(data.train_x), plan.batch_size, seed=plan.data_seed, device=data.train_x.device))
    return data.prepare(data.train_x.index_select(0, rows), plan.dtype)


def predict_one_network(
    module: nn.Module, arguments: dict[str, Any], inputs: Tensor, act: Activation | None, classes: int | None
) -> Forecast:
    """Return the forecast of one network.

    Args:
        module: the initialized network.
        arguments: as of `scheme_arguments`.
        inputs: the batch of step 0.
        act: its activation.
        classes: how many there are, None for regression.
    """
    if arguments["scheme"] not in (*SCHEMES, "custom"):
        return Forecast(remark=f"no forecast: init={arguments['scheme']} depends on more than theory describes")
    try:
        tasks = plan_of(module, request(arguments.pop("scheme"), **arguments))
        frame = predicted_rows(module, tasks, inputs, act=act, classes=classes)
    except UserError as reason:  # a φ that jumps, say: the network trains all the same
        return Forecast(remark=f"no forecast: {reason}")
    except Exception:  # a bug here must not cost a training
        return Forecast(remark=f"no forecast, because it failed:\n{traceback.format_exc()}")
    if frame.empty:
        return Forecast(remark="no forecast: theory has no answer for this network")
    depth = frame.attrs.get("trainable_depth")
    rows = tuple(LayerRow(*row) for row in frame.itertuples(index=False))
    return Forecast(rows, trainable_depth=depth)
