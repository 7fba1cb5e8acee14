"""MLflow: the only place that imports it, always late. Only the driver talks to it; workers return plain values."""

from pipelines.tracking.backend import default_tracking_uri, fetch_artifact
from pipelines.tracking.models import Model, Registered, point_current, replace_models
from pipelines.tracking.tracker import Tracker

__all__ = [
    "Model",
    "Registered",
    "Tracker",
    "default_tracking_uri",
    "fetch_artifact",
    "point_current",
    "replace_models",
]
