"""MLflow: the only place that imports it, always late. Only the driver talks to it; workers return plain values."""

from pipelines.tracking.backend import default_tracking_uri, fetch_artifact
from pipelines.tracking.tracker import Tracker

__all__ = ["Tracker", "default_tracking_uri", "fetch_artifact"]
