"""From raw lines to medians, ratios, a table and a picture.

A ratio is taken inside one round, of windows with the two cores equally far from each other; ratios
of different rounds or runs are never mixed.
"""

from statistics import median

from .peers import FLOORS
from .scenarios import BY_NAME

# Cores are apart if the way between them takes so many times the least of the run: two threads of one
# core are two or three times as near to each other as two cores that share a cache. A look or two may
# be wrong: one in six hundred has seen 16 ns where all others saw 90 to 160.
APART = 4.0
ODD_LOOKS = 2

DISTANCES = {
    frozenset(): None,
    frozenset([False]): "near",
    frozenset([True]): "apart",
    frozenset([False, True]): "moved",
}

# The peers that have columns of their own; all others stand in a second table.
COLUMNS = ("nginx", "haproxy")

LABELS = {
    "m2u": "m2u",
    "nginx": "nginx",
    "haproxy": "HAProxy",
    "haproxy-splice": "HAProxy with splice",
    "m2u-log": "m2u, log on",
    "m2u-million": "m2u, 1 M devices",
    "floor-ring": "a relay without HTTP on a bare ring",
    "floor-once": "that relay with a pool",
    "floor-haproxy": "HAProxy as a relay without HTTP",
}


def figures(lines):
    """{scenario: {round: {peer: figures}}} of the windows that count; the figures tell also at which
    "distance" the cores were."""
    found = {}
    for line, distance in zip(lines, distances(lines)):
        if line["counts"]:
            rounds = found.setdefault(line["scenario"], {})
            peers = rounds.setdefault(line["round"], {})
            peers[line["peer"]] = {**line["figures"], "distance": distance}
    return found


def distances(lines):
    """Of each window: "near", "apart", or "moved" if the cores were both; None if nobody looked."""
    latencies = [line["result"].get("core_latency_ns", []) for line in lines]
    limit = APART * least([ns for every in latencies for ns in every])
    return [DISTANCES[frozenset(ns > limit for ns in every)] for every in latencies]


def least(latencies):
    """The least that was seen but for the odd look; infinite if there was none."""
    seen = sorted(latencies)
    return seen[min(ODD_LOOKS, len(seen) - 1)] if seen else float("inf")


def alike(one, other):
    """Whether the figures of two windows may be held against each other."""
    return one["distance"] == other["distance"] != "moved"


def ratios(rounds, peer, base, key):
    pairs = [
        (peers[peer][key], peers[base][key])
        for peers in rounds.values()
        if peer in peers and base in peers and alike(peers[peer], peers[base])
    ]
    return [ours / theirs for ours, theirs in pairs if theirs > 0]


def typical(windows, key):
    """The median of those whose cores were near each other, or of all if none were."""
    near = [figures[key] for figures in windows if figures["distance"] in ("near", None)]
    return median(near or [figures[key] for figures in windows])


def rows(lines):
    """One entry for each figure, in the order of the scenarios."""
    found = figures(lines)
    for name, scenario in BY_NAME.items():
        rounds = found.get(name)
        if not rounds:
            continue
        ours = scenario.peers[0]
        for metric in scenario.metrics:
            values = {}
            for peer in scenario.peers:
                known = [peers[peer] for peers in rounds.values() if peer in peers]
                if known:
                    values[peer] = typical(known, metric.key)
            against = {}
            for base in scenario.base:
                every = ratios(rounds, ours, base, metric.key)
                bound = metric.bounds.get(base)
                if every:
                    ratio = median(every)
                    holds = None if bound is None else ratio <= bound
                    against[base] = (ratio, bound, holds, min(every), max(every))
                elif base in values and values[base] > 0:
                    against[base] = (None, bound, None if bound is None else False, None, None)
            yield scenario, metric, ours, values, against


def number(value):
    if value is None:
        return ""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}".rstrip("0").rstrip(".")


def label(peer):
    return LABELS.get(peer, peer)


def variants(lines, scenario, metric):
    """m2u with other flags or another binary, held against m2u; relays without HTTP, against every
    peer."""
    rounds = figures(lines).get(scenario.name, {})
    names = {peer for peers in rounds.values() for peer in peers} - set(scenario.peers)
    for name in sorted(names):
        for base in scenario.peers if name in FLOORS else ("m2u",):
            every = ratios(rounds, name, base, metric.key)
            if every:
                windows = [peers[name] for peers in rounds.values() if name in peers]
                value = typical(windows, metric.key)
                yield name, base, value, (median(every), None, None, min(every), max(every))


def verdict(entry):
    if entry is None:
        return ""
    ratio, bound, holds, low, high = entry
    if ratio is None:
        return "**no two windows alike**"
    text = f"{ratio:.2f} ({low:.2f}-{high:.2f})"
    if bound is None:
        return text
    return f"{text}, bound {bound:.2f}: " + ("holds" if holds else "**FALLS**")


def summary(lines, environment, options):
    out = ["# Side by side", ""]
    if options.get("quick"):
        out += ["Taken with `--quick`: shows that the tools work, measures nothing.", ""]
    out += [f"- {key}: {value}" for key, value in environment.items()]
    spoilt = sum(line["spoilt"] for line in lines)
    kept = sum(line["spoilt"] and line["counts"] for line in lines)
    apart = [where for line, where in zip(lines, distances(lines)) if line["counts"]]
    out += [
        f"- windows: {len(lines)}, of them spoilt by other work or by cores moved apart: {spoilt}, "
        f"of those counted all the same because every attempt was spoilt: {kept}",
        f"- of {len(apart)} windows that count, the cores were apart in {apart.count('apart')} and "
        f"moved in {apart.count('moved')}",
        "",
        "CPU is the proxy's own, user and system. Figures are medians over the rounds, of windows "
        "with the cores near each other where there are any; a ratio is m2u's figure over the "
        "peer's in the same round if both windows had the cores equally far from each other, its "
        "median, then lowest and highest.",
        "",
        "| scenario | figure | m2u | nginx | HAProxy | against nginx | against HAProxy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    falling = []
    others = []
    for scenario, metric, ours, values, against in rows(lines):
        unit = f", {metric.unit}" if metric.unit else ""
        title = f"{scenario.title} | {metric.title}{unit}"
        shown = {peer: number(value * metric.scale) for peer, value in values.items()}
        for base, entry in against.items():
            if entry[2] is False:
                share = "not known" if entry[0] is None else f"{entry[0]:.2f}"
                falling.append(f"{scenario.name}, {metric.title}: {share} of {label(base)}")
            if base not in COLUMNS:
                others.append(
                    f"| {title} | {label(ours)} {shown[ours]} | {label(base)} {shown[base]} "
                    f"| {verdict(entry)} |"
                )
        for peer, base, value, entry in variants(lines, scenario, metric):
            others.append(
                f"| {title} | {label(peer)} {number(value * metric.scale)} "
                f"| {label(base)} {shown[base]} | {verdict(entry)} |"
            )
        if any(base in COLUMNS for base in scenario.base):
            figures = " | ".join(shown.get(peer, "") for peer in ("m2u", *COLUMNS))
            verdicts = " | ".join(verdict(against.get(base)) for base in COLUMNS)
            out.append(f"| {title} | {figures} | {verdicts} |")
    if others:
        out += [
            "",
            "| scenario | figure | this | beside | ratio |",
            "| --- | --- | --- | --- | --- |",
            *others,
        ]
    out += ["", "Falling rows: " + ("none." if not falling else "")]
    out += [f"- {row}" for row in falling]
    return "\n".join(out) + "\n"


COLOURS = {"nginx": "#2f855a", "haproxy": "#2b6cb0"}


def picture(lines):
    """Bars of m2u's share of each peer's figure; the tick is the bound."""
    bars = [
        (f"{scenario.title}: {metric.title}", against)
        for scenario, metric, _, _, against in rows(lines)
        if any(base in COLUMNS and entry[1] for base, entry in against.items())
    ]
    left, scale, step = 400, 300, 34
    height = 60 + step * len(bars)
    width = left + scale * 1.5 + 60
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width:.0f}" height="{height}" fill="white"/>',
        '<text x="10" y="20" font-size="14">m2u against nginx (green) and HAProxy (blue): '
        "shorter is better, 1 is the peer, the tick is the bound</text>",
    ]
    for mark in (0, 0.5, 1, 1.5):
        x = left + scale * mark
        out.append(f'<line x1="{x}" y1="32" x2="{x}" y2="{height - 12}" stroke="#ccc"/>')
        out.append(f'<text x="{x}" y="{height - 1}" text-anchor="middle">{mark:g}</text>')
    for index, (title, against) in enumerate(bars):
        y = 38 + step * index
        out.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(title)}</text>')
        for place, base in enumerate(COLUMNS):
            entry = against.get(base)
            if entry is None or entry[0] is None:
                continue
            ratio, bound, holds = entry[:3]
            top = y + place * 12
            length = scale * min(ratio, 1.5)
            colour = COLOURS[base] if holds is not False else "#c53030"
            out.append(
                f'<rect x="{left}" y="{top}" width="{length:.1f}" height="10" fill="{colour}"/>'
            )
            out.append(f'<text x="{left + length + 6:.1f}" y="{top + 9}">{ratio:.2f}</text>')
            if bound:
                x = left + scale * bound
                out.append(
                    f'<line x1="{x:.1f}" y1="{top - 1}" x2="{x:.1f}" y2="{top + 11}" '
                    'stroke="black" stroke-width="2"/>'
                )
    return "\n".join([*out, "</svg>"]) + "\n"


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
