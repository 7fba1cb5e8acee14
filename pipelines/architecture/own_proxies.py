"""A user's own proxies, imported by tasks of the cluster: the driver runs no code of theirs."""

from collections.abc import Iterable
from dataclasses import replace

from apps.nas.own_proxy import own_digest
from apps.nas.proxies import is_own
from atom.errors import ConfigError
from pipelines.console.command import say
from pipelines.own_networks import BUILD_TIMEOUT_S
from pipelines.workers.pool import Limits
from pipelines.workers.tasks import run_tasks


def own_digests(names: Iterable[str], *, limits: Limits) -> dict[str, str]:
    """The digest of the sources of each of the names that is a user's own function.

    Args:
        names: of any proxies.
        limits: of a score; an import has `BUILD_TIMEOUT_S` at most, and one more try after a machine fault.

    Raises:
        ConfigError: one cannot be imported, or cannot be called as function(net, images, labels).
    """
    own = [name for name in names if is_own(name)]
    if not own:
        return {}
    say(f"importing {', '.join(own)}")
    limit_s = min(limits.chunk_timeout_s, BUILD_TIMEOUT_S)
    limits = replace(limits, max_retries=min(limits.max_retries, 1), chunk_timeout_s=limit_s)
    found: dict[str, str] = {}
    outcome = run_tasks(own_digest, own, limits=limits, on_result=found.__setitem__)
    for name, failure in outcome.failed.items():
        reason = failure.reason.removeprefix("ConfigError: ")
        raise ConfigError(reason if reason.startswith("proxy") else f"proxy {name}: {reason}.")
    return found
