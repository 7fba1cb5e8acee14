"""The audit of a distilled set on Ray: members, trainings, attacks, report; `pipelines/audit.py` is the command."""
