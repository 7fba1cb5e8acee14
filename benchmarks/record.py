"""Collect finished outputs of `atom-distill` into one small JSON file: settings, accuracies, times, hardware.

python benchmarks/record.py runs/cifar10-ipc1 runs/cifar10-ipc10 --out benchmarks/results/cifar10.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from atom.distilled import DistilledSet
from atom.methods.settings import DistillSettings
from pipelines.evaluation import SCORED

# Settings that are the same for every run unless they are named in the record.
DEFAULTS = {name: field.default for name, field in DistillSettings.model_fields.items()}


def record(output: Path) -> dict[str, Any]:
    """What one output holds, without its images."""
    distilled = DistilledSet.load(output)
    settings = dict(distilled.settings)
    facts = distilled.results[0] if distilled.results else {}
    return {
        "source": {key: distilled.source.get(key) for key in ("name", "title", "fingerprint", "num_train")},
        "ipc": distilled.ipc,
        "factor": distilled.factor,
        "method": distilled.method,
        "settings": {name: value for name, value in settings.items() if DEFAULTS.get(name) != value},
        "accuracies": [
            {
                key: row[key] if key != "std" or row["n"] > 1 else None
                for key in ("method", "network", "mean", "std", "n", "epochs", "stored_images", "seconds")
            }
            | {key: row[key] for key in SCORED if key in row}
            for row in distilled.results
        ],
        "distill_s": facts.get("distill_s"),
        "hardware": facts.get("distill_hardware") or facts.get("hardware"),
        "versions": dict(distilled.versions),
        "git_commit": distilled.git_commit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("outputs", type=Path, nargs="+", help="output directories of atom-distill")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument(
        "--note", default="", help="what a reader has to know, such as the kind of copy of the data"
    )
    arguments = parser.parse_args()
    runs = {output.name: record(output) for output in arguments.outputs}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"note": arguments.note, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
