"""The YAML header of a dataset card, in the vocabulary of the Hugging Face Hub."""

import re

from atom.set_values import SetValues

# Identifiers of the Hub by how sources begin to name their licence, lower case, words joined by dashes.
_LICENCES = {
    "mit": "mit",
    "apache-2-0": "apache-2.0",
    "apache-license-2-0": "apache-2.0",
    "bsd-3-clause": "bsd-3-clause",
    "bsd-2-clause": "bsd-2-clause",
    "cc0": "cc0-1.0",
    "cc-by-4-0": "cc-by-4.0",
    "cc-by-sa-3-0": "cc-by-sa-3.0",
    "cc-by-sa-4-0": "cc-by-sa-4.0",
    "cc-by-nc-4-0": "cc-by-nc-4.0",
}
_NOT_STATED = re.compile(r"$|none\b|unknown\b|not-stated|.*states?-no-licen[cs]e")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


MOST_NAMED = 1000
"""Classes that a header names, as many as ImageNet has. Chosen: people read a card; the parquet file names all."""


def write_header(distilled: SetValues, *, pretty_name: str, num_images: int) -> str:
    """The header, `---` lines included; names from outside are quoted, whatever they hold."""
    source = distilled.source
    licence = licence_id(source.get("licence"))
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", str(source.get("name") or "unknown")).strip("-") or "unknown"
    lines = ["---", f"license: {licence}"]
    if licence == "other":
        lines.append(f"license_name: {quote(str(source['licence']))}")
    lines += [
        f"pretty_name: {quote(pretty_name)}",
        "task_categories:\n- image-classification",
        f"size_categories:\n- {size_category(num_images)}",
        "annotations_creators:\n- machine-generated",
        f"source_datasets:\n- {quote(f'extended|{slug}')}",
        f"tags:\n- dataset-distillation\n- dataset-condensation\n- {quote(distilled.method)}",
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet",
    ]
    if distilled.num_classes <= MOST_NAMED:
        lines += _features(distilled)
    return "\n".join([*lines, "---"])


def _features(distilled: SetValues) -> list[str]:
    lines = [
        "dataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:",
        "      class_label:\n        names:",
    ]
    lines += [f"          '{index}': {quote(name)}" for index, name in enumerate(distilled.class_names)]
    if distilled.soft_labels is not None:
        lines.append("  - name: soft_label\n    list: float32")
    return lines


def licence_id(licence: object) -> str:
    """The Hub's identifier of a licence: a known one, "unknown" if none is stated, "other" for the rest."""
    words = re.sub(r"[^a-z0-9]+", "-", str(licence if licence is not None else "").lower()).strip("-")
    if _NOT_STATED.match(words):
        return "unknown"
    return next((hub for name, hub in _LICENCES.items() if f"{words}-".startswith(f"{name}-")), "other")


def size_category(num_images: int) -> str:
    """The Hub's size category, such as "n<1K"."""
    return next((name for limit, name in _SIZES if num_images < limit), "1M<n<10M")


def quote(text: str) -> str:
    """A YAML double-quoted scalar of any text, in printable ASCII."""
    letters = []
    for letter in text:
        code = ord(letter)
        if letter in '"\\':
            letters.append("\\" + letter)
        elif 32 <= code < 127:
            letters.append(letter)
        else:
            letters.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(letters) + '"'
