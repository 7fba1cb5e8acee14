"""A verdict in a few plain sentences, made from its numbers."""

import math

from apps.nas.plots import interval, kendall_of, scores_of
from apps.nas.verdict import Estimate, ProxyVerdict, Verdict
from apps.page import duration, listed, number


def summary(verdict: Verdict) -> list[str]:
    """What the numbers say, in up to seven plain sentences; "clearly" means that an interval leaves out 0.

    The sentences on differences, regret and cost speak of the first proxy.
    """
    if not verdict.proxies:
        return ["No proxy was judged."]
    first = verdict.proxies[0]
    told = (
        _ranking(verdict),
        _comparison(verdict, first),
        _regret(verdict, first),
        _ceiling(verdict),
        _fit(verdict),
    )
    return [sentence for sentence in (*told, _recommended(verdict), _cost(verdict, first)) if sentence]


def _ranking(verdict: Verdict) -> str:
    def best(subset: str) -> tuple[list[str], Estimate, int]:
        """Every proxy with the largest coefficient, and the interval of the first of them."""
        known = [
            (proxy, tau) for proxy in verdict.proxies if (tau := kendall_of(proxy, subset)).value is not None
        ]
        if not known:
            return [], Estimate(None, None, None), 0
        highest = max(tau.value or 0.0 for _, tau in known)
        # Equal orders may differ in the last bit.
        tied = [
            (proxy, tau) for proxy, tau in known if math.isclose(tau.value or 0.0, highest, abs_tol=1e-12)
        ]
        first, tau = tied[0]
        num = next(agreement.n for agreement in first.agreement if agreement.subset == subset)
        return [proxy.name for proxy, _ in tied], tau, num

    level, total = f"{100 * verdict.level:g} % interval", len(verdict.truth)
    names, tau, num = best("all")
    if not names:
        networks = f"{total} networks" if total != 1 else "one network"
        return f"With {networks} no rank correlation can be computed, so no proxy can be judged."
    bounds = f", {level} {interval(tau)}" if interval(tau) else ", too few networks for an interval"
    orders = "order" if len(names) > 1 else "orders"
    text = (
        f"Of {len(verdict.proxies)} proxies, {listed(names)} {orders} the networks most like the reference "
    )
    if len(verdict.proxies) == 1:
        text = f"{names[0]} is the one proxy compared with the reference "
    text += f"({verdict.reference_name}): Kendall's τ-b is {number(tau.value)} (1 is the same order, 0 none){bounds}, "
    text += f"{num} of {total} networks"
    if tau.low is not None and tau.low <= 0:
        text += "; that may be chance, since the interval reaches down to 0 or below"
    names, tau, num = best("top 20 %")
    if not names:
        return text + "; the true top 20 % are too few to be ranked."
    bounds = interval(tau) or "without an interval"
    return (
        text + f"; among the true top 20 % {listed(names)} {'do' if len(names) > 1 else 'does'} best"
        f" (τ-b {number(tau.value)} {bounds}, {num} networks)."
    )


def _comparison(verdict: Verdict, first: ProxyVerdict) -> str:
    groups: dict[str, list[str]] = {}
    for difference in verdict.differences:
        if difference.subset != "all" or difference.coefficient != "kendall":
            continue
        if first.name not in (difference.first, difference.second):
            continue
        ahead = difference.first == first.name
        low, high = difference.estimate.low, difference.estimate.high
        if low is None or high is None:
            group = "cannot be compared with that of"
        elif low <= 0 <= high:
            group = "does not differ clearly from that of"
        else:
            group = f"is clearly {'higher' if (low > 0) == ahead else 'lower'} than that of"
        groups.setdefault(group, []).append(difference.second if ahead else difference.first)
    if not groups:
        return ""
    told = listed([f"{group} {listed(names)}" for group, names in groups.items()], "; it ")
    return f"On the same networks, the τ-b of {first.name} over all networks {told}."


def _regret(verdict: Verdict, first: ProxyVerdict) -> str:
    known = scores_of(first, verdict)
    if not known or first.pick not in known:
        return ""
    best = max(known, key=lambda name: verdict.truth[name])
    gap = verdict.truth[best] - first.pick_truth
    regret = next((top.regret for top in first.top if top.k == 1), Estimate(gap, None, None))
    tied = "" if math.isclose(regret.value or 0.0, gap, abs_tol=0.005) else " on average over its ties"
    if math.isclose(gap, 0.0, abs_tol=0.005) and tied:
        # The first of several with the same score, in the order of the truth: luck, that no user would have.
        return (
            f"The pick of {first.name}, {first.pick}, is the best network, {number(first.pick_truth)} %, but others"
            f" share its score: taking any one of them costs {number(regret.value)} points on average"
            f"{' ' + interval(regret) if interval(regret) else ''}."
        )
    return (
        f"The pick of {first.name}, {first.pick}, reaches {number(first.pick_truth)} % and the best network, {best}, "
        f"{number(verdict.truth[best])} %, so trusting the pick alone costs {number(regret.value)} points{tied}"
        f"{' ' + interval(regret) if interval(regret) else ''}."
    )


def _ceiling(verdict: Verdict) -> str:
    ceiling = verdict.ceiling
    if ceiling.kendall is None:
        reason = (
            "has no second seed to compare with" if ceiling.num_seeds < 2 else "has no order in some seed"
        )
        return f"The reference {reason}, so how far it agrees with itself is unknown."
    top = (
        "" if ceiling.kendall_top is None else f", and at {number(ceiling.kendall_top)} on the true top 20 %"
    )
    tau = number(ceiling.kendall)
    agree = f"Any two of the {ceiling.num_seeds} seeds of the reference agree at τ-b {tau} on average{top}"
    if ceiling.kendall <= chance_tau(len(verdict.truth)):
        return (
            f"{agree}: no more than unrelated orders may, so the reference itself is mostly noise and judges no"
            " proxy; train it longer, with more seeds, or compare networks that differ more."
        )
    return (
        f"{agree}: another training of the reference would do about as well, and only a proxy with less noise of its"
        " own could do better."
    )


def _fit(verdict: Verdict) -> str:
    fit = verdict.fit
    if fit is None:
        return ""
    how = "one left out at a time" if fit.folds == fit.n else f"in {fit.folds} parts, each left out in turn"
    nothing = "" if fit.rmse < fit.rmse_of_mean else ", so the fit has learned nothing"
    return (
        f"fitted, a regression of the reference on the ranks by {listed(list(fit.weights))}, misses networks that it"
        f" was not fitted on by {number(fit.rmse)} points (root mean square over {fit.n} networks, {how}); predicting"
        f" their mean misses by {number(fit.rmse_of_mean)}{nothing}."
    )


def _recommended(verdict: Verdict) -> str:
    """Which proxy to take: of those above chance and not clearly below the best, the cheapest whose cost is known.

    Nothing where the reference does not agree with itself, or no proxy is above chance.
    """
    known = [
        (kendall_of(proxy, "all"), proxy) for proxy in verdict.proxies if proxy.prepare_seconds is not None
    ]
    known = [(tau, proxy) for tau, proxy in known if tau.value is not None and (tau.low or 0.0) > 0]
    agrees = verdict.ceiling.kendall is None or verdict.ceiling.kendall > chance_tau(len(verdict.truth))
    if not known or len(verdict.proxies) < 2 or not agrees:
        return ""
    best_tau, best = max(known, key=lambda pair: pair[0].value or 0.0)
    as_good = [
        (tau, p) for tau, p in known if p is best or not _clearly_below(tau, p, best_tau, best, verdict)
    ]
    tau, taken = min(as_good, key=lambda pair: _seconds(pair[1]))
    text = f"Take {taken.name} (τ-b {number(tau.value)}, {duration(_seconds(taken))})"
    dearer = [f"{p.name} ({number(t.value)}, {duration(_seconds(p))})" for t, p in as_good if p is not taken]
    if not dearer:
        return text + ": of those above chance whose cost is known none is as good."
    return (
        text
        + f": {listed(dearer)} {'is' if len(dearer) == 1 else 'are'} not clearly better, and cost no less."
    )


def _seconds(proxy: ProxyVerdict) -> float:
    return proxy.train_seconds + (proxy.prepare_seconds or 0.0)


def _clearly_below(
    tau: Estimate, proxy: ProxyVerdict, best_tau: Estimate, best: ProxyVerdict, verdict: Verdict
) -> bool:
    """By the interval of the difference where there is one, else by whether the two intervals are apart."""
    for one in verdict.differences:
        if (one.subset, one.coefficient) != ("all", "kendall") or one.estimate.low is None:
            continue
        if (one.first, one.second) == (best.name, proxy.name):
            return one.estimate.low > 0
        if (one.first, one.second) == (proxy.name, best.name):
            return (one.estimate.high or 0.0) < 0
    return (tau.high or 0.0) < (best_tau.low or 0.0)


def chance_tau(n: int) -> float:
    """The τ that two unrelated orders of n networks stay below 19 times out of 20, by the normal approximation.

    Its variance is 2 (2 n + 5) / (9 n (n - 1)) (Kendall, 1938).

    Example:
        >>> round(chance_tau(16), 2)
        0.3
    """
    if n < 2:
        return 1.0
    return 1.645 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def _cost(verdict: Verdict, first: ProxyVerdict) -> str:
    total = _seconds(first)
    text = f"{first.name} took {duration(total)}"
    if first.prepare_seconds is None:
        text += ", without its preparation, whose time is unknown"
    elif first.prepare_seconds > 0:
        text += f", {duration(first.prepare_seconds)} of preparation included"
    if total <= 0 or verdict.reference_seconds <= 0:
        return text + "."
    ratio = verdict.reference_seconds / total
    times = f"{ratio:.3g} times less" if ratio >= 1 else f"{1 / ratio:.3g} times more"
    return f"{text}: {times} than the reference, which took {duration(verdict.reference_seconds)}."
