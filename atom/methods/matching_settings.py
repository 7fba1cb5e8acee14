"""What the methods that match statistics of features may be told, beside the settings of all methods."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from atom.errors import ConfigError
from atom.settings import Settings, check_useless


class EmbeddingOptions(Settings):
    """Options of dm, which matches embeddings alone; all but the first are off unless they are given."""

    task_balance: Annotated[float, Field(ge=0)] | None = None
    """Weight λ of the embedding term; default 0.01 below 64 pixels, 0.02 from there on. Source: DataDAM,
    hyper-parameter table."""
    trained_networks: Annotated[int, Field(ge=0)] = 0
    """Networks trained on the real images beforehand; each iteration takes one of them, somewhere between its start and
    its end. 0: fresh random networks. Source: DANCE, 20."""
    training_passes: Annotated[int, Field(ge=1)] = 20
    """Passes over at most 2000 real images that each of them is trained for. Chosen; DANCE: 60 epochs."""
    calibration: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a trained network's cross-entropy on the synthetic images; 0, none. Source: DANCE, NCFM, 1."""
    cf_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distance of the embeddings' characteristic functions; 0, none. Source: NCFM, 300."""
    cf_frequencies: Annotated[int, Field(ge=1)] = 1024
    """Random frequencies at which they are compared, drawn anew in each iteration. Chosen; NCFM: 4096."""
    covariance_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distance of the embeddings' covariances, which needs two images per class; 0, none. Source: DSDM,
    50."""

    def shrunk(self) -> Self:
        """Two networks, two passes."""
        return self.changed(
            trained_networks=min(self.trained_networks, 2),
            training_passes=min(self.training_passes, 2) if self.trained_networks else self.training_passes,
            cf_frequencies=min(self.cf_frequencies, 16) if self.cf_weight else self.cf_frequencies,
        )

    @model_validator(mode="after")
    def _read(self) -> Self:
        if not self.trained_networks:
            check_useless(
                self, "training_passes", "no networks are trained; pass --trained-networks 5 as well"
            )
        if not self.cf_weight:
            check_useless(
                self, "cf_frequencies", "none are drawn without --cf-weight; pass --cf-weight 300 as well"
            )
        return self

    @model_validator(mode="after")
    def _calibrated_by_trained_networks(self) -> Self:
        if self.calibration and not self.trained_networks:
            raise ConfigError(
                f"--calibration {self.calibration:g} asks trained networks, and there are none; pass"
                " --trained-networks 5 as well."
            )
        return self


class AttentionOptions(EmbeddingOptions):
    """Options of atom, spatial and channel."""

    power: Annotated[int, Field(ge=1, le=8)] = 4
    """Exponent p of the attention maps, for |activation|**p. Source: DataDAM, hyper-parameter table."""


__all__ = ["AttentionOptions", "EmbeddingOptions"]
