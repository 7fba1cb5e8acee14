"""The README of a delivered network: what it reached, and code that uses and rebuilds it, to be run as it stands."""

import html

from apps.nas.space import NAMED
from apps.nas.winner_config import Config, Spread


def write_readme(config: Config, *, title: str) -> str:
    """What the network is, what it reached, and the code that uses and rebuilds it."""
    validation, test = config.validation_accuracy, config.test_accuracy
    height, width = config.image_size
    named = config.space in NAMED
    where = 'The code runs in this directory; elsewhere put its path in the place of ".".'
    if not named:
        where = (
            f"The network is not part of this project. The code runs where `{config.space}` can be imported, the"
            " directory of that file, with the source it had then (`identity` in winner.json holds its digest); put"
            ' the path of this directory in the place of ".".'
        )
    return _README.format(
        network=_text(config.network),
        title=_text(title),
        space=config.space,
        score=config.chosen_by.get("proxy", "a proxy"),
        number=config.chosen_by.get("networks", "all"),
        validation=_spread(validation),
        test=_spread(test),
        n=test.n,
        delivered_validation=f"{validation.delivered:.2f}",
        delivered_test=f"{test.delivered:.2f}",
        seed=config.seed,
        parameters="not known" if config.parameters is None else f"{config.parameters:,}",
        multiply_adds="not known" if config.multiply_adds is None else f"{config.multiply_adds:,}",
        precision=config.training.get("eval_precision", "another precision"),
        shape=f"{config.channels} x {height} x {width}",
        trust="" if named else ", trust_code=True",
        rebuild=_BUILD_NAMED if named else _BUILD_OWN,
        import_line="from atom import nets" if named else "from apps.nas.space import load_space",
        where=where,
    )


def _spread(values: Spread) -> str:
    return f"{values.mean:.2f}" if values.std is None else f"{values.mean:.2f} ± {values.std:.2f}"


def _text(value: str) -> str:
    """One line that Markdown shows as it is."""
    return html.escape(" ".join(value.split()))


_BUILD_NAMED = 'net = nets.build(config["network"], **shape)'
_BUILD_OWN = 'net = load_space(config["space"], **shape).build(config["network"])'

_README = """# {network}, trained on {title}

Of {number} networks of the space `{space}`, those with the best scores by {score} were trained on the whole training
set; of these, this one has the best mean validation accuracy.

| what | value |
| --- | --- |
| validation accuracy, %, n={n} | {validation} |
| test accuracy, %, n={n} | {test} |
| of the delivered weights (seed {seed}), validation, % | {delivered_validation} |
| of the delivered weights, test, % | {delivered_test} |
| parameters | {parameters} |
| multiply-adds an image | {multiply_adds} |

Mean ± standard deviation over training seeds. The validation images picked network and seed, so their accuracy is
a little too good; the test images picked nothing. Accuracies were measured in {precision}.

## How to use it

```python
import torch

from apps.nas.winner import load_winner

net, preprocess, config = load_winner("."{trust})
images = torch.zeros(5, config["channels"], *config["image_size"], dtype=torch.uint8)  # yours: N x {shape}
with torch.no_grad():
    logits = net(preprocess.apply(images))
print([config["class_names"][k] for k in logits.argmax(dim=1)])
```

## The same, step by step

```python
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

{import_line}
from atom.preprocess import Preprocess

folder = Path(".")
config = json.loads((folder / "winner.json").read_text(encoding="utf-8"))
shape = {{
    "channels": config["channels"],
    "image_size": tuple(config["image_size"]),
    "num_classes": config["num_classes"],
}}
{rebuild}
net.load_state_dict(load_file(folder / "model.safetensors"))
net.eval()
preprocess = Preprocess.from_tensors(load_file(folder / "preprocess.safetensors"))
images = torch.zeros(5, config["channels"], *config["image_size"], dtype=torch.uint8)
with torch.no_grad():
    logits = net(preprocess.apply(images))
print([config["class_names"][k] for k in logits.argmax(dim=1)])
```

{where}
"""
