"""Models from elsewhere: torchvision's classifiers by name, and the user's own callable."""

import inspect
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from initlab.errors import UserError, did_you_mean
from initlab.models.layers import NetworkSpec
from initlab.system.imports import describe_contract, describe_value, import_torchvision, load_target

OFFERED_ARGUMENTS = ("depth", "width", "act", "input_shape", "classes")
"""Fields of the specification that a user's builder may take or leave."""

# Constructors whose position tables or windows fix the size of the image.
FIXED_SIZES = {"vit": 224, "swin": 224, "maxvit": 224, "inception": 299}


class AdaptedClassifier(nn.Module):
    """An ImageNet classifier that takes any images: gray ones are repeated to three channels, all are resized.

    The classifier's parameters have the names `net.…`.

    >>> import torch
    >>> AdaptedClassifier(nn.Identity(), 64)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(self, net: nn.Module, size: int):
        super().__init__()
        self.net = net
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 1 or 3, H, W] to outputs [B, classes]."""
        if x.shape[-2:] != (self.size, self.size):
            x = nn.functional.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return self.net(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)


def vision_model(spec: NetworkSpec, *, arch: str = "resnet18", size: int | None = None) -> nn.Module:
    """Build any classifier of torchvision's by name; its depth, width and activation are its own.

    Args:
        spec: shape of one image and number of outputs.
        arch: name of the classifier.
        size: pixels of the side that images are resized to; None for what the architecture needs, else 64.

    Raises:
        UserError: torchvision has no such classifier, or the data are not images.
    """
    import_torchvision()
    from torchvision import models

    names = models.list_models(module=models)
    if arch not in names:
        raise UserError(f"model.arch={arch!r} is not a classifier of torchvision's.{did_you_mean(arch, names)}")
    if len(spec.input_shape) != 3 or spec.input_shape[0] not in (1, 3):
        raise UserError(
            f"model=torchvision needs images with 1 or 3 channels and the data has shape {list(spec.input_shape)}: "
            "choose an image data set such as data=fashion_mini."
        )
    constructor = models.get_model_builder(arch)
    accepted = inspect.signature(constructor).parameters
    default = next((s for prefix, s in FIXED_SIZES.items() if arch.startswith(prefix)), 64)
    options: dict[str, object] = {"weights": None, "num_classes": spec.classes}
    if arch.startswith(("googlenet", "inception")):
        options |= {"aux_logits": False, "init_weights": False}
    if size is not None and arch.startswith("vit") and "kwargs" in accepted:
        options["image_size"] = size
    # Regnets compute their widths with tensors, whose values a meta device does not have.
    with torch.device("cpu") if arch.startswith("regnet") else nullcontext():
        return AdaptedClassifier(constructor(**options), size or default)


def custom_model(spec: NetworkSpec, *, target: str | None = None, **options: object) -> nn.Module:
    """Call the user's own builder `model.target=package.module:function`; it must return an nn.Module.

    Args:
        spec: the requested network; its fields are offered to the builder.
        target: `package.module:function`.
        options: the builder's own keys.

    Raises:
        UserError: the target cannot be imported or called, or returns something else.
    """
    if not target:
        raise UserError(f"model=custom needs model.target=package.module:function{describe_contract('model')}.")
    builder = load_target(target, "model.target")
    if not callable(builder):
        raise UserError(f"model.target={target} is a {type(builder).__name__}{describe_contract('model')}.")
    try:
        signature = inspect.signature(builder)
        takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        # A key of the user's own that is not taken is a typo.
        offered = {k: getattr(spec, k) for k in OFFERED_ARGUMENTS if takes_all or k in signature.parameters}
        arguments = offered | options
        signature.bind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model.target={target} cannot be called ({error}): it is offered {', '.join(OFFERED_ARGUMENTS)} "
            "and must take your own keys, given as +model.<key>=…."
        ) from error
    with torch.device("cpu"):  # as above: a user's builder may read values
        module = builder(**arguments)
    if not isinstance(module, nn.Module):
        raise UserError(f"model.target={target} returned {describe_value(module)}{describe_contract('model')}.")
    return module
