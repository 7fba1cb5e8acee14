"""The scale of distilled images: how large their numbers are, which networks with InstanceNorm cannot see.

Such networks divide by the spread of every channel of every image, so the objective does not change when an image
is multiplied by a number, and nothing holds that number: each step is at right angles to the image and makes it
longer. Networks with BatchNorm or without norm, pictures, and storage in 8 bits all see it. So when the last
iteration is done, the images are put to the scale of the real ones; docs/scale.md has what else was tried.
"""

# I stored images of a class, n real ones, C channels, H height, W width

import torch
from torch import Tensor

from atom import formation
from atom.errors import ConfigError

RANGE_MULTIPLE = 5.0
"""How many times farther from its image's mean a value may lie than any value of a real image of the class does.
Chosen; measured by class: 0.9 to 1.0 on digits, 1.0 to 1.3 on FashionMNIST, 0.3 to 0.5 on whitened CIFAR-10."""


def to_real_scale(images_ICHW: Tensor, real_nCHW: Tensor, *, factor: int) -> Tensor:
    """The distilled images of one class at the scale of its real ones; what InstanceNorm sees stays as it is.

    All images of the class are multiplied by one number, such that their deviations from the means of their channels
    have, once decoded, the root mean square that the deviations of real images have. Then the deviations of each
    image, and its means channel by channel, are brought into the range that those of single real images span. So a
    class of blank images stays blank, and one loud image does not silence the others.

    Args:
        images_ICHW: stored images, preprocessed, float32 or float64.
        real_nCHW: real images of the class, preprocessed.
        factor: of the stored images, see `atom.formation`.

    Returns:
        [I, C, H, W], of the type of `images_ICHW`.

    Source: chosen, measured: benchmarks/hold_scale.py.
    """
    # No copy of the real images: a class can be large.
    variance_nC, mean_nC = torch.var_mean(real_nCHW, dim=(2, 3), correction=0)
    real_n = variance_nC.double().mean(dim=1).sqrt()
    stored_ICHW = images_ICHW.double()
    mean_IC = stored_ICHW.mean(dim=(2, 3))
    around_ICHW = stored_ICHW - mean_IC[..., None, None]
    decoded_MCHW = formation.decode(around_ICHW, factor)
    own_I = decoded_MCHW.square().view(len(stored_ICHW), -1).mean(dim=1).sqrt()
    own, real = own_I.square().mean().sqrt(), real_n.square().mean().sqrt()
    # Images without deviations have none to multiply, and where real ones have none, there is no number for the means.
    ratio = real / own if own > 0 and real > 0 else torch.ones_like(own)
    held_I = (own_I * ratio).clamp(real_n.min(), real_n.max())
    factor_I = torch.where(own_I > 0, held_I / own_I, torch.zeros_like(own_I))
    low_C, high_C = mean_nC.double().aminmax(dim=0)
    held_IC = torch.minimum(torch.maximum(mean_IC * ratio, low_C), high_C)
    return (around_ICHW * factor_I.view(-1, 1, 1, 1) + held_IC[..., None, None]).to(images_ICHW.dtype)


def check_range(images_NCHW: Tensor, real_nCHW: Tensor, *, class_id: int) -> None:
    """Refuse decoded images of a class that leave the range of its real ones by far.

    A value is measured from its channel's mean in its image, or from the nearest mean of a real image, if that mean
    lies outside of the range that those span.

    Raises:
        ConfigError: a value lies more than `RANGE_MULTIPLE` times as far off as any value of a real image does.
    """
    low_C, high_C = real_nCHW.mean(dim=(2, 3)).aminmax(dim=0)
    reached, real = (_farthest(images, low_C, high_C) for images in (images_NCHW, real_nCHW))
    # What rounding leaves of a blank image counts as nothing.
    slack = 1e-5 * max(1.0, float(real_nCHW.abs().max()))
    if reached > RANGE_MULTIPLE * real + slack:
        raise ConfigError(
            f"class {class_id}: its distilled images reach {reached:.3g} from their mean, its real ones {real:.3g}, and"
            f" at most {RANGE_MULTIPLE:g} times that is kept; pass a smaller --lr-img, or look at the class's images."
        )


def _farthest(images_NCHW: Tensor, low_C: Tensor, high_C: Tensor) -> float:
    centre_NC = torch.minimum(torch.maximum(images_NCHW.mean(dim=(2, 3)), low_C), high_C)
    above_NC = images_NCHW.amax(dim=(2, 3)) - centre_NC
    below_NC = centre_NC - images_NCHW.amin(dim=(2, 3))
    return float(torch.maximum(above_NC, below_NC).max())


__all__ = ["RANGE_MULTIPLE", "check_range", "to_real_scale"]
