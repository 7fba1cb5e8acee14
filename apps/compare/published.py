"""Accuracies that others published, to stand beside ours where data, network and number of images are the same.

None of them was repeated here, and their protocols differ from ours and from one another: many are the best of several
evaluations on test images. ATOM's own table was not read, so it has no row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A test accuracy in percent, and where it stands.

    Attributes:
        mean, std: as printed; a std of None was not.
        source: the publication.
    """

    mean: float
    std: float | None
    source: str


_POSTER = "DataDAM's poster, Table 1"
_DC = "readme of the DC/DSA repository; spreads by DANCE's figure low_res"
_IDC = "IDC's repository, its tables"
_DANCE = "DANCE's figure low_res"
_DATM = "DATM's figure comparison"
_NCFM = "NCFM's paper, Table 1"
_SUBSETS = "NCFM's paper, Table 2"
_DM_SUBSETS = "DataDAM's poster, Table 2"
_LABEL = "Qin et al. 2024, tables of its repository"

_Numbers = Sequence[tuple[float, float | None] | None]
_IPCS = (1, 10, 50)

# (method, factor): by data set accuracies at 1, 10 and 50 images a class, ConvNet of width 128 with InstanceNorm, as
# deep as the images ask for: five blocks for subsets of ImageNet at 128 pixels.
_TABLE: Mapping[tuple[str, int], Mapping[str, tuple[str, _Numbers]]] = {
    ("random", 1): {
        "cifar10": (_POSTER, [(14.4, 2.0), (26.0, 1.2), (43.4, 1.0)]),
        "cifar100": (_POSTER, [(4.2, 0.3), (14.6, 0.5), (30.0, 0.4)]),
        "tinyimagenet": (_POSTER, [(1.4, 0.1), (5.0, 0.2), (15.0, 0.4)]),
        "fashionmnist": (_DANCE, [(51.4, 3.8), (73.8, 0.7), (82.5, 0.7)]),
        "imagenette": (_SUBSETS, [(23.5, 4.8), (47.7, 2.4), None]),
        "imagewoof": (_SUBSETS, [(14.2, 0.9), (27.0, 1.9), None]),
        "imagefruit": (_SUBSETS, [(13.2, 0.8), (21.4, 1.2), None]),
        "imagemeow": (_SUBSETS, [(13.8, 0.6), (29.0, 1.1), None]),
        "imagesquawk": (_SUBSETS, [(21.8, 0.5), (40.2, 0.4), None]),
        "imageyellow": (_SUBSETS, [(20.4, 0.6), (37.4, 0.5), None]),
    },
    ("herding", 1): {
        "cifar10": (_NCFM, [(21.5, 1.2), (31.6, 0.7), (40.4, 0.6)]),
        "cifar100": (_NCFM, [(8.4, 0.3), (17.3, 0.3), (33.7, 0.5)]),
        "tinyimagenet": (_NCFM, [(2.8, 0.2), (6.3, 0.2), (16.7, 0.3)]),
    },
    ("kcenter", 1): {
        "cifar10": (_POSTER, [(21.5, 1.3), (14.7, 0.9), (27.0, 1.4)]),
        "cifar100": (_POSTER, [(8.4, 0.3), (17.3, 0.3), (30.5, 0.3)]),
        "tinyimagenet": (_POSTER, [(1.6, 0.1), (5.1, 0.1), (15.0, 0.3)]),
    },
    ("random + teacher labels", 1): {
        "cifar10": (_LABEL, [(21.1, 0.5), (46.3, 0.8), (62.1, 0.5)]),
        "cifar100": (_LABEL, [(16.0, 0.3), (34.3, 0.2), (47.1, 0.4)]),
        "tinyimagenet": (_LABEL, [(7.6, 0.3), (27.2, 0.4), (35.6, 0.4)]),
    },
    ("dm", 1): {
        "cifar10": (_POSTER, [(26.0, 0.8), (48.9, 0.6), (63.0, 0.4)]),
        "cifar100": (_POSTER, [(11.4, 0.3), (29.7, 0.3), (43.6, 0.4)]),
        "tinyimagenet": (_POSTER, [(3.9, 0.2), (12.9, 0.4), (25.3, 0.2)]),
        "imagenette": (_DM_SUBSETS, [(32.8, 0.5), (58.1, 0.3), None]),
        "imagewoof": (_DM_SUBSETS, [(21.1, 1.2), (31.4, 0.5), None]),
        "imagesquawk": (_DM_SUBSETS, [(31.2, 0.7), (50.4, 1.2), None]),
    },
    ("dc", 1): {
        "mnist": (_DC, [(91.7, None), (97.4, None), (98.8, None)]),
        "fashionmnist": (_DC, [(70.5, 0.6), (82.3, 0.4), (83.6, 0.4)]),
        "svhn": (_DC, [(31.2, None), (76.1, None), (82.3, None)]),
        "cifar10": (_DC, [(28.3, 0.5), (44.9, 0.5), (53.9, 0.5)]),
        "cifar100": (_DC, [(12.8, 0.3), (25.2, 0.3), None]),
        "tinyimagenet": (_DC, [(5.3, 0.1), (12.9, 0.1), (12.7, 0.4)]),
    },
    ("dsa", 1): {
        "mnist": (_DC, [(88.7, None), (97.8, None), (99.2, None)]),
        "fashionmnist": (_DC, [(70.6, 0.6), (84.6, 0.3), (88.7, 0.2)]),
        "svhn": (_DC, [(27.5, None), (79.2, None), (84.4, None)]),
        "cifar10": (_DC, [(28.8, 0.7), (52.1, 0.5), (60.6, 0.5)]),
        "cifar100": (_DC, [(13.9, 0.3), (32.3, 0.3), (42.8, 0.4)]),
        "tinyimagenet": (_DC, [(5.7, 0.1), (16.3, 0.2), (5.1, 0.2)]),
    },
    ("idc", 1): {
        "fashionmnist": (_IDC, [(70.7, None), (85.3, None), (89.1, None)]),
        "cifar10": (_IDC, [(36.7, None), (58.3, None), (69.5, None)]),
        "cifar100": (_IDC, [None, (36.6, None), None]),
    },
    ("idc", 2): {
        "fashionmnist": (_IDC, [(81.0, None), (86.0, None), (86.2, None)]),
        "cifar10": (_DANCE, [(50.6, 0.4), (67.5, 0.5), (74.5, 0.1)]),
        "cifar100": (_DANCE, [None, (45.1, 0.4), None]),
    },
    ("mtt", 1): {
        "cifar10": (_DATM, [(46.2, 0.8), (65.4, 0.7), (71.6, 0.2)]),
        "cifar100": (_DATM, [(24.3, 0.3), (39.7, 0.4), (47.7, 0.2)]),
        "tinyimagenet": (_DATM, [(8.8, 0.3), (23.2, 0.2), (28.0, 0.3)]),
        "imagenette": (_SUBSETS, [(47.7, 0.9), (63.0, 1.3), None]),
        "imagewoof": (_SUBSETS, [(28.6, 0.8), (35.8, 1.8), None]),
        "imagefruit": (_SUBSETS, [(26.6, 0.8), (40.3, 1.3), None]),
        "imagemeow": (_SUBSETS, [(30.7, 1.6), (40.4, 2.2), None]),
        "imagesquawk": (_SUBSETS, [(39.4, 1.5), (52.3, 1.0), None]),
        "imageyellow": (_SUBSETS, [(45.2, 0.8), (60.0, 1.5), None]),
    },
    ("datm", 1): {
        "cifar10": (_DATM, [(46.9, 0.5), (66.8, 0.2), (76.1, 0.3)]),
        "cifar100": (_DATM, [(27.9, 0.2), (47.2, 0.4), (55.0, 0.2)]),
        "tinyimagenet": (_DATM, [(17.1, 0.3), (31.1, 0.3), (39.7, 0.3)]),
    },
}

NETWORK = "convnet"
"""The network of all of them, which distils and judges; numbers of RaT-BPTT and DataDAM are of others, and not here."""


def published(
    method: str, *, dataset: str, ipc: int, factor: int, network: str, judge: str
) -> Published | None:
    """What is printed for a setting; None where nothing is.

    Args:
        method: as tables call it.
        dataset: such as "cifar10", whole and at its own size.
        ipc: stored images a class.
        factor: of multi-formation.
        network: that distils.
        judge: that is trained on the set.

    Example:
        >>> asked = {"dataset": "cifar10", "factor": 1, "network": "convnet", "judge": "convnet"}
        >>> published("mtt", ipc=10, **asked).mean, published("mtt", ipc=5, **asked)
        (65.4, None)
    """
    source, numbers = _TABLE.get((method, factor), {}).get(dataset, ("", []))
    if network != NETWORK or judge != NETWORK or ipc not in _IPCS or not numbers:
        return None
    found = numbers[_IPCS.index(ipc)]
    return None if found is None else Published(*found, source)


__all__ = ["NETWORK", "Published", "published"]
