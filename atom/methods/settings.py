"""What every distillation may be told, and the options of the one method that it is done by."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from atom.errors import ConfigError
from atom.methods.registry import options_of, readers_of
from atom.settings import (
    NoOptions,
    Precision,
    Settings,
    Switch,
    first_problem,
    images_of_classes,
    parse_dsa_strategy,
)


class DistillSettings(Settings):
    """How the images are distilled: all that decides their bits, besides the real ones.

    Options of the method may be given by their names alone.

    Example:
        >>> DistillSettings(method="spatial", power=2).options.power
        2
    """

    method: str = "atom"
    """By attention: atom, spatial, channel; means: dm; gradients: dc, dsa, idc; the trained network's loss: dd,
    rat-bptt; trajectories: mtt, datm; real images: random, herding, kcenter; or path.py:Class."""
    ipc: Annotated[int, Field(ge=1)] = 1
    """Stored images per class."""
    factor: Annotated[int, Field(ge=1, le=8)] = 1
    """Multi-formation: a stored image holds factor x factor smaller ones. Source: IDC (Kim et al., 2022)."""
    iterations: Annotated[int, Field(ge=0)] | None = None
    """Steps on the images; default by method; atom: 8000 on a GPU (DataDAM), 300 on a CPU (chosen, measured)."""
    lr_img: Annotated[float, Field(gt=0)] | None = None
    """Step size on the preprocessed pixels; default by method; atom: 1 up to ipc 50, 10 above. Source: DataDAM,
    hyper-parameter table."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """How the step sizes go over the iterations: constant, or falling to 0 along half a cosine."""
    momentum_img: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """SGD momentum on the images. Source: DataDAM, hyper-parameter table."""
    batch_real: Annotated[int, Field(ge=1)] = 128
    """Real images per class and iteration. Chosen, measured: DM takes 256, DataDAM's code 64."""
    init: str = "real"
    """Where images start: real ones (DM, DataDAM), noise, herding, kcenter (coresets); in atom-distill also a set."""
    network: str = "convnet"
    """Network whose features, gradients or trainings make the images and, without --eval-networks, judge them; also
    that of teachers."""
    dsa_strategy: str = "auto"
    """Siamese augmentation: operations joined by "_", or "none"; auto: all six, without flip for symbols (--symbols).
    Source: DSA (Zhao and Bilen, 2021)."""
    zca: Switch = "auto"
    """ZCA whitening of the real images; auto: on for colour images up to 32 pixels. Source: ATOM, supplement 1.2."""
    zca_eps: Annotated[float, Field(gt=0)] = 0.1
    """Added to the eigenvalues of the covariance before whitening. Source: MTT's and DataDAM's code."""
    seed: int = 0
    """Seed of every random stream."""
    classes_per_group: Annotated[int, Field(ge=1)] | None = None
    """Classes distilled together, the unit of work, since they share bits; default 1 on a CPU, on a GPU what 8 GiB
    hold."""
    threads_per_actor: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each actor; part of the recipe, since another count gives other bits."""
    precision: Precision = "auto"
    """Arithmetic of the networks; auto: bfloat16 where the device computes in it, else float32. Images stay float32."""
    compile: Switch = "auto"
    """torch.compile of the step; auto: where the work is worth the compile time."""
    options: SerializeAsAny[Settings] = NoOptions()
    """What the method alone reads."""

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_method(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        method, given, rest = values.get("method", "atom"), values.get("options"), dict(values)
        if not isinstance(method, str) or not isinstance(given, Settings | Mapping | None):
            return values  # for pydantic to refuse
        kind = options_of(method)
        for name in sorted(kind.model_fields.keys() & cls.model_fields.keys()):
            raise ConfigError(
                f"method {method!r}: its option {name!r} is a setting of all methods; rename it."
            )
        given = given.model_dump() if isinstance(given, Settings) else given or {}
        by_name = {name: rest.pop(name) for name in values if name in kind.model_fields}
        for name in rest.keys() - cls.model_fields.keys():
            if readers := readers_of(name):
                raise ConfigError(unread(name, method, readers))
        return {**rest, "options": kind.model_validate({**given, **by_name})}

    @field_validator("dsa_strategy")
    @classmethod
    def _known_operations(cls, strategy: str) -> str:
        if strategy != "auto":
            parse_dsa_strategy(strategy)
        return strategy

    def changed(self, **values: Any) -> Self:
        """The settings with other values, options by their names alone; checked anew.

        With another method, of the options those stay that it reads as well and that are not at their default: the
        defaults of one name are not the same for all methods.

        Raises:
            ConfigError: a value is out of range, or the method does not read it.
        """
        kind = options_of(values.get("method", self.method))
        changed_options = self.options.model_dump(exclude_defaults=True)
        kept = {name: value for name, value in changed_options.items() if name in kind.model_fields}
        try:
            return self.model_validate({**dict(self), "options": kept, **values})
        except ValidationError as error:
            raise ConfigError(first_problem(error)) from None

    @property
    def images_in_all(self) -> int | None:
        """Stored images of all classes together, where the method has the option; None: ipc of every class."""
        return getattr(self.options, "images_in_all", None)

    def per_class(self, num_classes: int) -> list[int]:
        """Stored images of each class, 0 where there are fewer images than classes."""
        if self.images_in_all is None:
            return [self.ipc] * num_classes
        return images_of_classes(self.images_in_all, num_classes)

    def rate_share(self, iteration: int) -> float:
        """Share of the step sizes with which an iteration steps, counted from 0, in 0 … 1.

        Example:
            >>> settings = DistillSettings(iterations=2, lr_schedule="cosine")
            >>> settings.rate_share(0), round(settings.rate_share(1), 6)
            (1.0, 0.5)
        """
        if self.lr_schedule == "constant":
            return 1.0
        assert self.iterations is not None, "settings are resolved by the driver"
        return (1 + math.cos(math.pi * iteration / self.iterations)) / 2

    def fitted(self, num_classes: int) -> Self:
        """The settings with the ipc that --images-in-all comes to: that of the classes that have most.

        Raises:
            ConfigError: --ipc says something else.
        """
        if self.images_in_all is None:
            return self
        most = max(self.per_class(num_classes))
        # 1 is the default, which says nothing.
        if self.ipc not in (1, most):
            raise ConfigError(
                f"--ipc {self.ipc}: --images-in-all {self.images_in_all} comes to at most {most} of each of"
                f" {num_classes} classes; leave one of the two out."
            )
        return self.model_copy(update={"ipc": most})

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # By value: the class of a user's options is known by no module's name in another process.
        return type(self).model_validate, (self.model_dump(mode="json"),)


def unread(name: str, method: str, readers: list[str]) -> str:
    """The sentence for a setting that a method does not read."""
    known = f"only {', '.join(readers)} does" if len(readers) == 1 else f"only {', '.join(readers)} do"
    flag = f"--{name.replace('_', '-')}"
    return f"{flag}: the method {method} does not read it{f', {known}' if readers else ''}; leave it out."
