"""Class-incremental learning on Ray: planned, distilled, trained, reported; `pipelines/continual.py` is the command."""
