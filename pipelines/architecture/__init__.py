"""Architecture search on Ray Tune: planned, scored in trials, judged, reported; `pipelines/nas.py` is the command."""
