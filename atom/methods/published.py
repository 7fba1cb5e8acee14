"""Settings as they were published with each method, where the defaults here are others: --preset paper.

They are those for CIFAR-10, by images a class where the publication says so, in between those of the next smaller
number. Recipes have them with their sources, value by value; docs/deviations.md says what cannot be set.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from atom.errors import ConfigError

Values = dict[str, Any]

_NORMAL = {"factor": 1, "lr_schedule": "constant", "momentum_img": 0.5, "init": "real"}
_DC_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Outer steps and inner epochs by images a class."""
_MTT = {
    1: {"syn_steps": 50, "max_start_epoch": 2, "lr_student": 0.01, "lr_lr": 0.001, "lr_img": 100.0},
    10: {"syn_steps": 30, "max_start_epoch": 20, "lr_student": 0.001, "lr_lr": 10.0, "lr_img": 100.0},
    50: {"syn_steps": 30, "max_start_epoch": 40, "lr_student": 0.001, "lr_lr": 10.0, "lr_img": 1000.0},
}
"""The rate of the step size's logarithm makes the same first step: the published one over the square of lr_student."""
_DATM = {
    1: {"max_start_epoch": 4, "lr_lr": 0.001, "lr_label": 5.0, "max_loss": 1.1},
    10: {"first_max_start_epoch": 10, "max_start_epoch": 20, "lr_lr": 0.1, "lr_label": 2.0},
    50: {
        "first_max_start_epoch": 20,
        "max_start_epoch": 40,
        "growth_iterations": 2000,
        "lr_lr": 0.1,
        "lr_label": 2.0,
        "lr_img": 1000.0,
    },
}


_TIED = {
    "outer_steps": ("inner_epochs",),
    "inner_steps": ("window",),
    "inner_optimizer": ("lr_inner",),
    "metric": ("lr_img",),
    "min_start_epoch": ("first_max_start_epoch", "growth_iterations"),
    "max_start_epoch": ("first_max_start_epoch", "growth_iterations"),
}
"""By a setting those that were published for its value, and may be refused or absurd beside another."""


def published(method: str, ipc: int, given: Collection[str] = ()) -> Values:
    """Values of flags by name, those of the training on the set among them.

    Args:
        method: by name.
        ipc: images a class.
        given: names of settings that are given; what was published for other values of these is left out.

    Raises:
        ConfigError: nothing was published with the method, or it is one of a user's own.

    Source: DataDAM's table and code; DM, DC, DSA, IDC, MTT, DATM, RaT-BPTT, DD: their published codes.
    """
    if method not in _PUBLISHED:
        raise ConfigError(
            f"--preset paper: of the method {method} no settings were published; known are"
            f" {', '.join(_PUBLISHED)}. Leave it out."
        )
    tied = {one for name in given for one in _TIED.get(name, ())}
    return {name: value for name, value in _PUBLISHED[method](ipc).items() if name not in tied}


def _row(table: Mapping[int, Any], ipc: int) -> Any:
    return table[max(known for known in table if known <= max(ipc, min(table)))]


def _attention(ipc: int) -> Values:
    return {
        **_NORMAL,
        "iterations": 8000,
        "lr_img": 1.0 if ipc <= 50 else 10.0,
        "batch_real": 128,
        "power": 4,
        "protocol": "datadam",
    }


def _dm(ipc: int) -> Values:
    return {
        **_NORMAL,
        "iterations": 20000,
        "lr_img": 1.0 if ipc <= 50 else 10.0,
        "batch_real": 256,
        "zca": "off",
        "protocol": "dm",
    }


def _dsa(ipc: int) -> Values:
    outer, inner = _row(_DC_LOOPS, ipc)
    return {
        **_NORMAL,
        "outer_steps": outer,
        **({"inner_epochs": inner} if outer > 1 else {}),
        "iterations": 1000,
        "lr_img": 0.1,
        "batch_real": 256,
        "zca": "off",
        "protocol": "dm",
    }


def _dc(ipc: int) -> Values:
    return {**_dsa(ipc), "init": "noise", "epochs": 300, "eval_dsa_strategy": "none"}


def _idc(ipc: int) -> Values:
    return {
        **_NORMAL,
        "factor": 2,
        "metric": "mse",
        "trained_networks": 20,
        "training_passes": 100,
        "batch_real": 64,
        "iterations": 200000,
        "lr_img": 0.08 * ipc / 10,
        "dsa_strategy": "color_crop_cutout",
        "zca": "off",
        "protocol": "idc",
    }


def _mtt(ipc: int) -> Values:
    whitened = {"zca_eps": 1.6} if ipc < 50 else {"zca": "off"}
    return {
        **_NORMAL,
        "num_experts": 100,
        "lr_expert": 0.01,
        "batch_expert": 256,
        "expert_epochs": 2,
        "max_loss": 9.0,
        "iterations": 5000,
        "protocol": "dm",
        **whitened,
        **_row(_MTT, ipc),
    }


def _datm(ipc: int) -> Values:
    return {
        **_NORMAL,
        "num_experts": 100,
        "lr_expert": 0.01,
        "batch_expert": 256,
        "flat_rho": 0.01,
        "flat_alpha": 0.3,
        "expert_epochs": 2,
        "syn_steps": 80,
        "lr_student": 0.01,
        "lr_img": 100.0,
        "iterations": 10000,
        "zca_eps": 1.6,
        "protocol": "dm",
        "batch_train": 128,
        **_row(_DATM, ipc),
    }


def _rat_bptt(ipc: int) -> Values:
    del ipc
    return {
        "factor": 1,
        "inner_steps": 200,
        "window": 60,
        "window_at": "random",
        "inner_optimizer": "adam",
        "lr_inner": 0.001,
        "lr_lr": 0.0,
        "inner_dsa_strategy": "flip_rotate",
        "batch_outer": 5000,
        "iterations": 600000,
        "lr_schedule": "constant",
        "lr_img": 0.055,
        "init": "noise",
        "epochs": 1000,
    }


def _dd(ipc: int) -> Values:
    return {
        "factor": 1,
        "distill_steps": ipc,
        "distill_epochs": 3,
        "lr_inner": 0.001,
        "lr_lr": 0.01,
        "inner_init": "random",
        "batch_outer": 1024,
        "iterations": 19600,
        "lr_schedule": "constant",
        "lr_img": 0.01,
        "init": "noise",
        "zca": "off",
        "epochs": 1000,
    }


_PUBLISHED: Mapping[str, Callable[[int], Values]] = {
    "atom": _attention,
    "spatial": _attention,
    "channel": _attention,
    "dm": _dm,
    "dc": _dc,
    "dsa": _dsa,
    "idc": _idc,
    "dd": _dd,
    "rat-bptt": _rat_bptt,
    "mtt": _mtt,
    "datm": _datm,
}

__all__ = ["published"]
