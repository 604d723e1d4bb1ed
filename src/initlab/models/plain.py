"""Plain chains: `mlp` and `cnn`, h^l = W^l φ(h^(l−1)) + b^l."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from initlab.errors import UserError
from initlab.models.layers import Dropout, MeanPool, NetworkSpec, Structure, WeightLayer, flatten_structure

Padding: TypeAlias = Literal["circular", "zeros"]
NormMaker: TypeAlias = Callable[[int], nn.Module]

NORMS_1D: dict[str, NormMaker | None] = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
NORMS_2D: dict[str, NormMaker | None] = {
    "none": None,
    "batch": nn.BatchNorm2d,
    # one group over channels and positions: what layer normalization is for a map
    "layer": lambda channels: nn.GroupNorm(1, channels),
}


class Chain(nn.Module):
    """Weight layers in a row, each followed by [norm], activation, [dropout]; then [pool] and the readout.

    Parameters are `hidden.<k>.weight`, `norms.<k>.weight`, `acts.<k>.weight`, `readout.weight`: the name of a weight
    depends on its place alone, so that streams keyed by name survive a change of depth, norm or dropout.
    """

    only_calls_children = True

    def __init__(
        self,
        hidden: Sequence[nn.Module],
        acts: Sequence[nn.Module],
        readout: nn.Module,
        *,
        norms: Sequence[nn.Module] = (),
        dropout: float = 0.0,
        entry: nn.Module | None = None,
        pool: nn.Module | None = None,
    ):
        super().__init__()
        self.entry = entry
        self.hidden = nn.ModuleList(hidden)
        self.norms = nn.ModuleList(norms) if norms else None
        self.acts = nn.ModuleList(acts)
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in hidden) if dropout else None
        self.pool = pool
        self.readout = readout
        drops = [None, *(f"dropouts.{k}" if dropout else None for k in range(len(hidden)))]
        self.structure: Structure = (
            WeightLayer("hidden.0", "first", "data", "acts.0", normed=bool(norms)),
            *(
                WeightLayer(f"hidden.{k}", "hidden", "activation", f"acts.{k}", normed=bool(norms), dropout=drops[k])
                for k in range(1, len(hidden))
            ),
            *([] if pool is None else [MeanPool()]),
            WeightLayer("readout", "readout", "activation", dropout=drops[-1]),
        )
        self.weight_layers = flatten_structure(self.structure)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch [B, *input_shape] to outputs [B, classes]."""
        x = self.entry(x) if self.entry is not None else x
        norms, dropouts = self.norms, self.dropouts
        for k, (layer, act) in enumerate(zip(self.hidden, self.acts, strict=True)):
            x = layer(x)
            x = norms[k](x) if norms is not None else x
            x = act(x)
            x = dropouts[k](x) if dropouts is not None else x
        x = self.pool(x) if self.pool is not None else x
        return self.readout(x)


def layer_widths(width: int | Sequence[int], depth: int) -> list[int]:
    """Return one width per hidden layer: an integer is repeated, a list must have length `depth`.

    Raises:
        UserError: the list has another length, or a width is not a positive whole number.

    >>> layer_widths(128, 2), layer_widths([256, 128], 2)
    ([128, 128], [256, 128])
    """
    sizes = [width] * depth if isinstance(width, int) else list(width)
    if len(sizes) != depth:
        raise UserError(
            f"width={sizes} lists {len(sizes)} layers but depth={depth}: give one width per hidden layer "
            f"(depth={len(sizes)}), or a single number."
        )
    if bad := [w for w in sizes if not isinstance(w, int) or w < 1]:
        raise UserError(f"width={bad[0]!r} is not a positive whole number of units: say for example width=128.")
    return sizes


def norm_constructor(name: str, table: Mapping[str, NormMaker | None]) -> NormMaker | None:
    """Return the norm that `model.norm` names, a function of the number of channels; None for `none`.

    Raises:
        UserError: the table has no such norm.
    """
    if name not in table:
        raise UserError(f"model.norm={name!r} is unknown: choose one of {', '.join(table)}.")
    return table[name]


def require_images(spec: NetworkSpec, instead: str) -> None:
    """Accept images, samples of shape [channels, height, width].

    Raises:
        UserError: the samples have another shape; `instead` is the model that takes them.
    """
    if len(spec.input_shape) != 3:
        raise UserError(
            f"model={spec.model} needs images [channels, height, width] and the data has shape "
            f"{list(spec.input_shape)}: choose model={instead}, or an image data set such as data=fashion_mini."
        )


def mlp(spec: NetworkSpec, *, norm: str = "none", dropout: float = 0.0) -> nn.Module:
    """Build a fully connected network: `depth` hidden layers and a readout."""
    sizes = layer_widths(spec.width, spec.depth)
    inputs = [math.prod(spec.input_shape), *sizes]
    hidden = [nn.Linear(n, m) for n, m in zip(inputs, sizes, strict=False)]
    return _chain(spec, hidden, sizes, norm_constructor(norm, NORMS_1D), dropout, entry=nn.Flatten())


def check_maps(spec: NetworkSpec, kernel: int, padding: str, downsample: int) -> None:
    """Accept convolutions that keep a map's size and fit on the smallest one.

    Raises:
        UserError: the padding is unknown, the kernel is not odd or too wide, or `downsample` is negative.
    """
    if padding not in ("circular", "zeros"):
        raise UserError(f"model.padding={padding!r} is unknown: choose circular or zeros.")
    if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise UserError(f"model.kernel={kernel!r} must be odd and positive, so that maps keep their size: say 3.")
    if not isinstance(downsample, int) or downsample < 0:
        raise UserError(f"model.downsample={downsample!r} must be a whole number of convolutions with stride 2: say 2.")
    smallest = -(-min(spec.input_shape[1:]) // 2 ** min(downsample, spec.depth - 1))
    if padding == "circular" and kernel // 2 > smallest:
        raise UserError(
            f"model.kernel={kernel} is too wide to wrap around maps of {smallest} positions, which images of "
            f"{list(spec.input_shape)} come down to: say model.kernel=3, model.downsample=0 or model.padding=zeros."
        )


def cnn(
    spec: NetworkSpec,
    *,
    norm: str = "none",
    dropout: float = 0.0,
    kernel: int = 3,
    padding: Padding = "circular",
    downsample: int = 2,
) -> nn.Module:
    """Build `depth` plain convolutions, the first `downsample` with stride 2, then mean pooling and a dense readout."""
    require_images(spec, "mlp")
    check_maps(spec, kernel, padding, downsample)
    sizes = layer_widths(spec.width, spec.depth)
    hidden = [
        nn.Conv2d(n, m, kernel, stride=2 if k < downsample else 1, padding=kernel // 2, padding_mode=padding)
        for k, (n, m) in enumerate(zip([spec.input_shape[0], *sizes], sizes, strict=False))
    ]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _chain(spec, hidden, sizes, norm_constructor(norm, NORMS_2D), dropout, pool=pool)


def _chain(
    spec: NetworkSpec,
    hidden: Sequence[nn.Module],
    sizes: Sequence[int],
    norm: NormMaker | None,
    dropout: float,
    **more: nn.Module,
) -> Chain:
    acts, readout = [spec.act.build() for _ in sizes], nn.Linear(sizes[-1], spec.classes)
    return Chain(hidden, acts, readout, norms=[norm(m) for m in sizes] if norm else (), dropout=dropout, **more)
