"""Coresets, what distillation must beat: random, herding and k-center subsets of real images.

Each picks `count` rows of a feature matrix. Features are whatever the caller finds meaningful; the pipeline
passes preprocessed pixels or the embedding of a network.
"""

# N images, D features, K classes

from collections.abc import Sequence

import numpy as np

from atom.errors import ConfigError, DataError, ShapeError
from atom.streams import stream

METHODS = ("random", "herding", "kcenter")


def select(
    method: str, features_ND: np.ndarray, *, count: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Indices of `count` distinct rows, int64, in the order of selection.

    * random: without replacement, drawn from `rng`.
    * herding: each row is the one that brings the mean of the selected rows closest to the mean of all rows;
      no row twice. Source: Welling, *Herding dynamical weights to learn*, 2009, in the greedy form of iCaRL
      (Rebuffi et al., 2017).
    * kcenter: the first row is the one closest to the mean, each further row the one farthest from the rows
      selected so far. Source: Gonzalez, *Clustering to minimize the maximum intercluster distance*, 1985;
      he starts anywhere, the mean makes the start a function of the data.

    Ties go to the lowest index. Distances are Euclidean, in float64.

    Args:
        method: one of METHODS.
        features_ND: any real type; `random` looks at its length only.
        count: 1 <= count <= N.
        rng: for `random`; the others draw nothing.

    Raises:
        ConfigError: unknown method, count out of range, or `random` without rng.
        ShapeError: features are not [N, D].
        DataError: a feature is NaN or infinite.

    Example:
        >>> select("kcenter", np.array([[0.0], [1.0], [2.0], [9.0]]), count=2).tolist()
        [2, 3]
    """
    if method not in METHODS:
        raise ConfigError(f"coreset method {method!r} is unknown; known are {', '.join(METHODS)}.")
    if features_ND.ndim != 2:
        raise ShapeError(
            f"coreset features have shape {tuple(features_ND.shape)}, expected [N, D]; flatten them."
        )
    num_rows = len(features_ND)
    if not 1 <= count <= num_rows:
        raise ConfigError(f"coreset count is {count}, but there are {num_rows} images; pass 1 to {num_rows}.")
    if method == "random":
        if rng is None:
            raise ConfigError(
                "coreset method 'random' received no generator; pass rng=atom.streams.stream(...)."
            )
        return rng.choice(num_rows, size=count, replace=False).astype(np.int64)
    features_ND = np.asarray(features_ND, dtype=np.float64)
    if not np.isfinite(features_ND).all():
        row = int(np.argmin(np.isfinite(features_ND).all(axis=1)))
        raise DataError(
            f"coreset features: row {row} holds NaN or infinity; check the network that made them."
        )
    # Distances do not change under a shift, and about the mean they lose fewer digits.
    centred_ND = features_ND - features_ND.mean(axis=0)
    return _herding(centred_ND, count) if method == "herding" else _kcenter(centred_ND, count)


def select_per_class(
    method: str,
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    *,
    ipc: int | Sequence[int],
    num_classes: int,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Indices of `ipc` rows of each class, int64 [K * ipc], class by class; or of as many as it says of each, or none.

    A class's choice depends on its own rows, the method and the seed, not on the other classes.

    Args:
        method: one of METHODS.
        features_ND: see `select`.
        labels_N: int64, 0 <= label < num_classes.
        ipc: images per class.
        num_classes: K.
        seed: of the streams `random` draws from.
        class_names: to name a class that is too small.

    Raises:
        ConfigError: a class has fewer than `ipc` images, or see `select`.
        ShapeError: labels and features differ in number.
    """
    if labels_N.shape != features_ND.shape[:1]:
        raise ShapeError(
            f"coreset labels have shape {tuple(labels_N.shape)} for {len(features_ND)} rows of features,"
            " expected one label a row."
        )
    chosen = []
    counts = [ipc] * num_classes if isinstance(ipc, int) else ipc
    for class_id, count in enumerate(counts):
        rows = np.flatnonzero(labels_N == class_id)
        if count > len(rows):
            name = f"{class_id} ({class_names[class_id]!r})" if class_names is not None else str(class_id)
            raise ConfigError(
                f"--ipc {count}: class {name} has only {len(rows)} training images;"
                f" pass --ipc {max(len(rows), 1)} or less, or add images of that class."
            )
        if count:
            own = select_of_class(method, features_ND[rows], count=count, class_id=class_id, seed=seed)
            chosen.append(rows[own])
    return np.concatenate(chosen).astype(np.int64)


def select_of_class(
    method: str, features_ND: np.ndarray, *, count: int, class_id: int, seed: int
) -> np.ndarray:
    """`select` of the rows of one class, with its stream of random numbers."""
    rng = stream(seed, f"coreset/{method}", 0, class_id)
    return select(method, features_ND, count=count, rng=rng)


def draw_seed(seed: int, number: int) -> int:
    """Seed of a random coreset: that of draw `number` in a run of `seed`.

    Seeds of runs are far apart, so that no draw of one run is a draw of the next.
    """
    return 1000 * seed + number


def _herding(centred_ND: np.ndarray, count: int) -> np.ndarray:
    """Greedy minimum of |sum of the selected + x|**2 = const + |x|**2 + 2 <x, sum>, the mean being 0."""
    squares_N = np.einsum("nd,nd->n", centred_ND, centred_ND)
    total_D = np.zeros(centred_ND.shape[1])
    free_N = np.zeros(len(centred_ND))
    chosen = np.empty(count, dtype=np.int64)
    for step in range(count):
        chosen[step] = np.argmin(squares_N + 2 * (centred_ND @ total_D) + free_N)
        total_D += centred_ND[chosen[step]]
        free_N[chosen[step]] = np.inf
    return chosen


def _kcenter(centred_ND: np.ndarray, count: int) -> np.ndarray:
    """Farthest-point traversal; a chosen row has distance -1, so that duplicates are not chosen twice."""
    squares_N = np.einsum("nd,nd->n", centred_ND, centred_ND)
    chosen = np.empty(count, dtype=np.int64)
    chosen[0] = np.argmin(squares_N)
    nearest_N = np.full(len(centred_ND), np.inf)
    for step in range(count):
        if step:
            chosen[step] = np.argmax(nearest_N)
        centre = chosen[step]
        distance_N = squares_N - 2 * (centred_ND @ centred_ND[centre]) + squares_N[centre]
        # Rounding may push the distance of a duplicate below zero, hence below that of a chosen row.
        nearest_N = np.minimum(nearest_N, np.maximum(distance_N, 0))
        nearest_N[chosen[: step + 1]] = -1
    return chosen
