"""A place that --experts names, looked at before anything is computed: whose experts does it hold?

Experts are found by a digest of their recipe and images, so those of other images or networks are never mixed up with
one's own. But a wrong place would go unnoticed: nothing fits there, and everything is trained anew.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atom.data import RealData
from atom.errors import ConfigError, StoreError
from atom.methods.experts import Expert
from pipelines.console.command import say
from pipelines.output.array_files import header_bytes, metadata
from pipelines.output.expert_files import (
    EXPERTS_FLAG,
    FILE_NAME,
    damaged,
    file_of,
    read_expert,
    recipe_of,
    shared_experts,
)
from pipelines.output.store import Store

Told = Mapping[str, Any]
"""What a stored expert says of itself, its source's name among it."""

_SHOWN = 3
"""Sources or networks that a message names at most."""


def experts_place(
    location: str | None, asked: Iterable[object], real: RealData, *, smoke: bool, unasked: str
) -> Store | None:
    """The place that --experts names, if any; none in a smoke run, whose few images make experts of nobody else's use.

    Args:
        location: what the flag says.
        asked: preparations of the run, as far as they are known before Ray has started; experts count.
        real: the images that experts are trained on.
        smoke: see above.
        unasked: why there are none, for the message.

    Raises:
        ConfigError, StoreError: see `shared_experts` and `check_place`; or nobody asks for experts.
    """
    place = shared_experts(location)
    if place is None:
        return None
    experts = [one for one in asked if isinstance(one, Expert)]
    if not experts:
        raise ConfigError(f"{EXPERTS_FLAG} {location}: {unasked}; leave it out.")
    if smoke:
        say(f"Note: {EXPERTS_FLAG} {location}: a smoke run has its own experts, in the output.")
        return None
    check_place(place, experts, real)
    return place


def check_place(place: Store, asked: Sequence[Expert], real: RealData) -> None:
    """Refuse a place that holds experts, but none of these images, or none of these with a network that is asked for.

    One header a recipe is read, and those files whole that the run is going to read, by what is known of it here: in
    which arithmetic experts are trained and how images are preprocessed is decided later.

    Raises:
        ConfigError: see above.
        StoreError: a file of this run is damaged, or lies in another's place.
    """
    known = _recipes(place)
    if not known:
        return
    alike = {folder: told for folder, told in known.items() if told.get("images") == real.train.fingerprint}
    flag = f"{EXPERTS_FLAG} {place}"
    todo = "another place, or an empty one to have them trained there"
    if not alike:
        found = _listed(
            f"{told.get('source', '?')} {str(told.get('images'))[:12]}" for told in known.values()
        )
        raise ConfigError(
            f"{flag}: the experts there were trained on other images ({found}) than this run's ({real.name}"
            f" {real.train.fingerprint[:12]}); pass --dataset, --validation-frac and --train-per-class as they were"
            f" trained with, or {todo}."
        )
    wanted = [recipe_of(one, real) for one in asked]
    networks = {recipe["network"] for recipe in wanted}
    if not any(told.get("network") in networks for told in alike.values()):
        found = _listed(str(told.get("network")) for told in alike.values())
        raise ConfigError(
            f"{flag}: the experts of these images there are of {found}, and this run asks for"
            f" {_listed(networks)}; pass that --network, or {todo}."
        )
    for expert, recipe in zip(asked, wanted, strict=True):
        for folder, told in alike.items():
            name = f"{folder}/expert_{expert.number:04d}.safetensors"
            fits = all(told.get(key) == value for key, value in recipe.items())
            if fits and place.exists(name):
                _check_place_of(place, name, read_expert(place, name)[1])


def _recipes(place: Store) -> dict[str, Told]:
    """By folder what the first expert that can be read says of itself.

    Raises:
        StoreError: none can be, so that nobody knows whose they are; or one lies in another's place.
    """
    found: dict[str, Told] = {}
    trouble: dict[str, StoreError] = {}
    for name in place.list():
        match = FILE_NAME.fullmatch(name)
        if match is None or match["folder"] in found:
            continue
        try:
            found[match["folder"]] = _told(place, name)
        except StoreError as error:
            trouble.setdefault(match["folder"], error)
    for folder, error in trouble.items():
        if folder not in found:
            raise error
    return found


def _told(place: Store, name: str) -> Told:
    try:
        about = metadata(place.read_start(name, header_bytes(place.read_start(name, 8))))
        told = json.loads(about["expert"])
        _check_place_of(place, name, told)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(place.where(name), error) from error
    return {**told, "source": about.get("source", "?")}


def _check_place_of(place: Store, name: str, told: Told) -> None:
    if file_of(told) != name:
        raise StoreError(
            f"{place.where(name)} holds the expert of {file_of(told)}; put it back there, or delete it."
        )


def _listed(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - _SHOWN} others" if len(distinct) > _SHOWN else ""
    return ", ".join(distinct[:_SHOWN]) + more


__all__ = ["check_place", "experts_place"]
