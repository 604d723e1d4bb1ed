"""Data sets that are computed: where theory's assumptions are wanted, or a very fast run. Always the same values."""

import math
from pathlib import Path

import torch
from torch import Tensor

from initlab.data.dataset import RawDataset
from initlab.system.random_streams import generator

# Each row is one class: heights of a curve at twelve places, drawn by hand, no two alike after shift and stretch.
CURVES = (
    "258998520013",
    "000029920000",
    "268630123579",
    "069600000696",
    "975310009900",
    "888880004640",
    "986432125752",
    "777777753100",
    "047404740474",
    "158841111148",
)


def gaussian(
    directories: tuple[Path, ...], train_size: int, test_size: int, dimension: int, classes: int
) -> RawDataset:
    """Draw x ~ N(0, I) and label it by the largest output of a random teacher, tanh in one hidden layer.

    y = argmax W₂ tanh(2 W₁x/√d) with d inputs, d hidden units, W₁ and W₂ standard normal: inputs as mean field theory
    wants them (i.i.d., second moment 1) and classes, of unequal sizes, that a hidden layer learns better than none.
    Setting after Gardner & Derrida 1989, Three Unfinished Works on the Optimal Storage Capacity of Networks.
    """
    drawing = generator("drawn data")
    first = 2 * torch.randn(dimension, dimension, generator=drawing) / math.sqrt(dimension)
    second = torch.randn(classes, dimension, generator=drawing)
    x = torch.randn(train_size + test_size, dimension, generator=drawing)
    y = (torch.tanh(x @ first.T) @ second.T).argmax(dim=1)
    return _raw(x, y, train_size, classes, "drawn: Gaussian inputs, a random teacher", standardize=False)


def digits_1d(directories: tuple[Path, ...], train_size: int, test_size: int, noise: float) -> RawDataset:
    """Bend ten hand-drawn curves into noisy signals of 40 samples, [n, 1, 1, 40]: an image of one row.

    Each sample takes its class's curve, stretches it to a random width, puts it at a random place, scales its height,
    tilts it, and adds smooth and white noise. After the idea of Greydanus 2020, Scaling Down Deep Learning: the
    classes can be told apart only by shape, so a convolution helps and training takes seconds.
    """
    drawing = generator("drawn data")
    n, length, classes = train_size + test_size, 40, len(CURVES)
    y = torch.arange(n).remainder(classes)[torch.randperm(n, generator=drawing)]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=drawing)

    width = uniform(0.3 * length, 0.55 * length)
    start = uniform(0, 1) * (length - width)
    position = torch.arange(length)
    signal = _curve(y, (position - start) / width) * uniform(0.5, 1.5)
    tilt = 0.75 * torch.randn(n, 1, generator=drawing) * (2 * position / (length - 1) - 1)
    white = torch.randn(n, length, generator=drawing)
    smooth = _smooth(torch.randn(n, length, generator=drawing), width=2.0)
    x = signal + tilt + noise * (smooth + 0.1 * white)
    return _raw(x[:, None, None], y, train_size, classes, "drawn: ten curves, bent and blurred")


def sine(
    directories: tuple[Path, ...], train_size: int, test_size: int, dimension: int, frequency: float, noise: float
) -> RawDataset:
    """Regress y = √2·sin(π·frequency·w·x) on x ~ U(−1, 1)^dimension: `frequency` periods along a random unit vector w.

    √2 makes the variance of y one, so a squared loss of 1 (½ where the loss has the factor ½) is that of a constant.
    The inputs keep their range, which SIREN expects (Sitzmann et al. 2020). A deep linear network can fit the part
    that is linear in x: all of it as frequency goes to 0.

    Args:
        directories: not used.
        train_size: number of training samples.
        test_size: number of test samples; they are free of noise.
        dimension: number of inputs; w is 1 for one.
        frequency: periods over the range −1 … 1.
        noise: std of the Gaussian noise on the training targets.
    """
    drawing = generator("drawn data")
    direction = torch.randn(dimension, generator=drawing)
    direction = direction / direction.norm() if dimension > 1 else torch.ones(1)
    x = 2 * torch.rand(train_size + test_size, dimension, generator=drawing) - 1
    y = math.sqrt(2) * torch.sin(math.pi * frequency * (x @ direction))[:, None]
    y[:train_size] += noise * torch.randn(train_size, 1, generator=drawing)
    return _raw(x, y, train_size, None, f"drawn: a sine of {frequency} periods", standardize=False)


def _raw(
    x: Tensor, y: Tensor, train_size: int, classes: int | None, provenance: str, standardize: bool = True
) -> RawDataset:
    return RawDataset(x[:train_size], y[:train_size], x[train_size:], y[train_size:], classes, provenance, standardize)


def _curve(labels: Tensor, place: Tensor) -> Tensor:
    """Interpolate the curve of each label linearly at places in [0, 1], [n, length]; outside it is level."""
    shapes = torch.tensor([[float(height) for height in row] for row in CURVES])
    shapes = (shapes - shapes.mean(dim=1, keepdim=True)) / shapes.std(dim=1, keepdim=True)
    own = shapes[labels]
    knot = place.clamp(0, 1) * (own.shape[1] - 1)
    left = knot.floor().clamp(max=own.shape[1] - 2).long()
    fraction = knot - left
    return own.gather(1, left) * (1 - fraction) + own.gather(1, left + 1) * fraction


def _smooth(white: Tensor, width: float) -> Tensor:
    """Convolve rows with a Gaussian kernel of that width, at unit variance away from the ends."""
    reach = torch.arange(-8, 9)
    kernel = torch.exp(-((reach / width) ** 2) / 2)
    kernel = kernel / kernel.norm()
    return torch.nn.functional.conv1d(white[:, None], kernel[None, None], padding=8)[:, 0]
