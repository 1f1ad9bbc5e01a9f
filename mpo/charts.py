"""Small charts as inline SVG, styled by the page's CSS classes. No fonts, no scripts, nothing from elsewhere.

Charts of one row place their marks in per cent, so that they fill any width without distortion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

MINUS = "\N{MINUS SIGN}"
ROUNDING = 1e-5  # changes below it are rounding, here as in pages/dom.js


def interval(low: float, value: float, high: float, reach: float) -> Markup:
    """A change with its interval on the axis from -reach to reach, in the colour of its side of 0."""

    def at(x: float) -> str:
        return _percent(x, -reach, reach)

    side = "rise" if low > 0 else "fall" if high < 0 else "open"
    label = f"{number(value)}, from {number(low)} to {number(high)}"
    return Markup(
        f'<svg class="row {side}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<line class="axis" x1="50%" x2="50%" y1="0" y2="100%"/>'
        f'<line class="span" x1="{at(low)}" x2="{at(high)}" y1="50%" y2="50%"/>'
        f'<circle cx="{at(value)}" cy="50%" r="4.5"/></svg>'
    )


def outcomes(win: float, tie: float, loss: float) -> Markup:
    """Shares of wins, ties and losses as one bar."""
    label = f"{win:.0%} better, {tie:.0%} the same, {loss:.0%} worse"
    parts = [f'<svg class="row" role="img" aria-label="{label}"><title>{label}</title>']
    start = 0.0
    for kind, share in (("win", win), ("tie", tie), ("loss", loss)):
        place = f'x="{100 * start:.2f}%" width="{100 * share:.2f}%"'
        parts.append(f'<rect class="{kind}" {place} y="25%" height="50%"/>')
        start += share
    return Markup("".join([*parts, "</svg>"]))


def bar(share: float) -> Markup:
    """A share of 1 as a bar."""
    return Markup(
        f'<svg class="row" role="img" aria-label="{share:.0%}">'
        f'<rect class="rail" y="30%" height="40%" width="100%"/>'
        f'<rect class="mark" y="30%" height="40%" width="{100 * share:.2f}%"/></svg>'
    )


def lines(series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Curves of (step, value) points by name on common axes, with a legend for more than one."""
    points = [point for curve in series.values() for point in curve]
    width, height, left, right, bottom, top = 360, 190, 52, 14, 22, 22
    xs = ticks(min(x for x, _ in points), max(x for x, _ in points), 4)
    ys = ticks(min(y for _, y in points), max(y for _, y in points), 4)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - xs[0]) / (xs[-1] - xs[0]) * (width - left - right),
            height - bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (height - bottom - top),
        )

    names = escape(", ".join(series))
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{names}">']
    for y in ys:
        _, py = at(xs[0], y)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{py + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    for x in xs:
        px, _ = at(x, ys[0])
        parts.append(f'<text x="{px:.1f}" y="{height - 6}" text-anchor="middle">{number(x)}</text>')
    for index, (name, curve) in enumerate(series.items()):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in curve))
        parts.append(f'<polyline class="curve c{index}" points="{path}"/>')
        if len(curve) == 1:  # a line of one point is not to be seen
            px, py = at(*curve[0])
            parts.append(f'<circle class="point c{index}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"/>')
        if len(series) > 1:
            x = left + 110 * index
            parts.append(f'<line class="curve c{index}" x1="{x}" x2="{x + 18}" y1="9" y2="9"/>')
            parts.append(f'<text x="{x + 23}" y="12.5">{escape(name)}</text>')
    return Markup("".join([*parts, "</svg>"]))


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them, the first at or below `low` and the last at or above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Three significant digits, or whole thousands; a true minus sign, no trailing zeros."""
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", MINUS)


def fixed(value: float, digits: int) -> str:
    """So many decimals, a true minus sign."""
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    """`fixed` with its sign; what rounds to 0 counts as positive."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", MINUS)


def breakable(name: str) -> Markup:
    """A name that may be broken after an underscore where it is too long for its place."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def decimals(reach: float) -> int:
    """How many of them show three digits of `reach`: from one to six, and one where all is rounding."""
    return min(6, max(1, 2 - math.floor(math.log10(reach)))) if reach > ROUNDING else 1


def _percent(x: float, low: float, high: float, margin: float = 2.0) -> str:
    share = (x - low) / (high - low) if high > low else 0.5
    return f"{margin + (100 - 2 * margin) * min(max(share, 0.0), 1.0):.2f}%"
