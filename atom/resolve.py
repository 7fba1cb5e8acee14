"""Every default that depends on the data or the device, decided once, before anything is computed.

Whatever can change a bit of the result (precision, compiled or eager, iterations, step size) is decided here by
the driver, written into the artifact, and sent to every worker, which decides nothing. What is a method's own it
decides itself: `Method.resolve`.
"""

from atom.device import precision_name
from atom.errors import ConfigError
from atom.methods.lookup import find_method
from atom.methods.method import Shape
from atom.methods.settings import DistillSettings
from atom.nets.custom import call
from atom.protocols import PROTOCOLS
from atom.settings import FROM_SET, INITS, DeviceKind, EvaluateSettings, settle_dsa_strategy


def resolve_settings(
    settings: DistillSettings,
    *,
    device_kind: DeviceKind,
    channels: int,
    height: int,
    width: int,
    num_classes: int,
    symbols: bool | None,
    whitenable: bool = True,
) -> DistillSettings:
    """The settings with no None and no "auto" left, but for those that the method does not read.

    Args:
        settings: as the user gave them.
        device_kind: "cpu" or "cuda", of the workers.
        channels, height, width, num_classes: of the real images.
        symbols: whether they show written symbols, which are not mirrored; see `settle_dsa_strategy`.
        whitenable: whether their covariance can have full rank; see `atom.whitening.rank_flaw`.

    Raises:
        ConfigError: an unknown method, augmentation or network, a network without the blocks that it matches, images
            too small for the factor, a start that is not known here, or two numbers of images.
    """
    if settings.init not in INITS and not settings.init.startswith(FROM_SET):
        raise ConfigError(
            f"--init {settings.init}: expected one of {', '.join(INITS)}; only atom-distill starts from a distilled set"
            " as well, and reads that itself."
        )
    if settings.factor > 1 and min(height, width) // settings.factor < 2:
        # A tile of one pixel decodes to an image of one colour.
        raise ConfigError(
            f"--factor {settings.factor}: images of {height}x{width} pixels cannot hold that many tiles of two"
            f" pixels a side; pass at most {max(1, min(height, width) // 2)}."
        )
    whitened = "on" if whitens_by_itself(channels, height, width) and whitenable else "off"
    common = settings.fitted(num_classes).model_copy(
        update={
            "dsa_strategy": settle_dsa_strategy(settings.dsa_strategy, symbols=symbols),
            "zca": whitened if settings.zca == "auto" else settings.zca,
        }
    )
    shape = Shape(channels, height, width, num_classes)
    method = find_method(settings.method)
    return call(method.resolve, settings=common, shape=shape, device_kind=device_kind)


def whitens_by_itself(channels: int, height: int, width: int) -> bool:
    """Whether `zca="auto"` whitens images of this shape. Source: ATOM, supplement 1.2."""
    return channels == 3 and max(height, width) <= 32


def resolve_evaluation(
    settings: EvaluateSettings, *, device_kind: DeviceKind, symbols: bool | None
) -> EvaluateSettings:
    """The evaluation settings with no None and no "auto" left; arguments and errors as for `resolve_settings`."""
    protocol = PROTOCOLS[settings.protocol]
    operations = settle_dsa_strategy(settings.eval_dsa_strategy, symbols=symbols, flag="--eval-dsa-strategy")
    if settings.eval_dsa_strategy == "auto" and protocol.left_out:
        operations = "_".join(one for one in operations.split("_") if one != protocol.left_out)
    return settings.model_copy(
        update={
            "epochs": settings.epochs or protocol.epochs or (1000 if device_kind == "cuda" else 300),
            "batch_train": settings.batch,
            "eval_dsa_strategy": operations,
            "eval_precision": precision_name(settings.eval_precision, device_kind),
        }
    )
