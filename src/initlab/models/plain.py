"""Plain chains: `mlp` and `cnn`, h^l = W^l φ(h^(l−1)) + b^l."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from initlab.activations import Activation
from initlab.errors import UserError
from initlab.models.layers import Dropout, WeightLayer

Padding = Literal["circular", "zeros"]
NORMS_1D = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
NORMS_2D = {
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
        self.weight_layers = (
            *(
                WeightLayer(
                    f"hidden.{k}", "first" if k == 0 else "hidden", "data" if k == 0 else "activation", f"acts.{k}"
                )
                for k in range(len(self.hidden))
            ),
            WeightLayer("readout", "readout", "activation"),
        )

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

    >>> layer_widths(128, 2), layer_widths([256, 128], 2)
    ([128, 128], [256, 128])
    """
    listed = [width] * depth if isinstance(width, int) else list(width)
    if len(listed) != depth:
        raise UserError(
            f"width={listed} lists {len(listed)} layers but depth={depth}: give one width per hidden layer "
            f"(depth={len(listed)}), or a single number."
        )
    if bad := [w for w in listed if not isinstance(w, int) or w < 1]:
        raise UserError(f"width={bad[0]!r} is not a positive whole number of units: say for example width=128.")
    return listed


def norm_constructor(name: str, table: dict) -> type | None:
    """Look up `model.norm`; raises UserError with the choices."""
    if name not in table:
        raise UserError(f"model.norm={name!r} is unknown: choose one of {', '.join(table)}.")
    return table[name]


def mlp(
    *,
    depth: int,
    width: int | Sequence[int],
    act: Activation,
    input_shape: Sequence[int],
    classes: int,
    norm: str = "none",
    dropout: float = 0.0,
) -> nn.Module:
    """Build a fully connected network: `depth` hidden layers and a readout."""
    sizes = layer_widths(width, depth)
    inputs = 1
    for extent in input_shape:
        inputs *= extent
    hidden = [nn.Linear(n, m) for n, m in zip([inputs, *sizes], sizes, strict=False)]
    make_norm = norm_constructor(norm, NORMS_1D)
    return Chain(
        hidden,
        [act.build() for _ in sizes],
        nn.Linear(sizes[-1], classes),
        norms=[make_norm(m) for m in sizes] if make_norm else (),
        dropout=dropout,
        entry=nn.Flatten(),
    )


def check_maps(input_shape: Sequence[int], depth: int, kernel: int, padding: str, downsample: int) -> None:
    """Refuse, with UserError, kernels that do not keep a map's size or do not fit on the smallest one."""
    if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise UserError(f"model.kernel={kernel!r} must be odd and positive, so that maps keep their size: say 3.")
    if not isinstance(downsample, int) or downsample < 0:
        raise UserError(f"model.downsample={downsample!r} must be a whole number of convolutions with stride 2: say 2.")
    smallest = -(-min(input_shape[1:]) // 2 ** min(downsample, depth - 1))
    if padding == "circular" and kernel // 2 > smallest:
        raise UserError(
            f"model.kernel={kernel} is too wide to wrap around maps of {smallest} positions, which images of "
            f"{list(input_shape)} come down to: say model.kernel=3, model.downsample=0 or model.padding=zeros."
        )


def cnn(
    *,
    depth: int,
    width: int | Sequence[int],
    act: Activation,
    input_shape: Sequence[int],
    classes: int,
    norm: str = "none",
    dropout: float = 0.0,
    kernel: int = 3,
    padding: Padding = "circular",
    downsample: int = 2,
) -> nn.Module:
    """Build `depth` plain convolutions, the first `downsample` with stride 2, then mean pooling and a dense readout."""
    if len(input_shape) != 3:
        raise UserError(
            f"model=cnn needs images [channels, height, width] and the data has shape {list(input_shape)}: "
            "choose model=mlp, or an image data set such as data=fashion_mini."
        )
    if padding not in ("circular", "zeros"):
        raise UserError(f"model.padding={padding!r} is unknown: choose circular or zeros.")
    check_maps(input_shape, depth, kernel, padding, downsample)
    sizes = layer_widths(width, depth)
    hidden = [
        nn.Conv2d(n, m, kernel, stride=2 if k < downsample else 1, padding=kernel // 2, padding_mode=padding)
        for k, (n, m) in enumerate(zip([input_shape[0], *sizes], sizes, strict=False))
    ]
    make_norm = norm_constructor(norm, NORMS_2D)
    return Chain(
        hidden,
        [act.build() for _ in sizes],
        nn.Linear(sizes[-1], classes),
        norms=[make_norm(m) for m in sizes] if make_norm else (),
        dropout=dropout,
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
