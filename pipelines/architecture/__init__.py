"""Architecture search on Ray: planned, scored or searched, judged, reported; `pipelines/nas.py` is the command."""
