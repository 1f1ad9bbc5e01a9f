"""A value among those allowed, a number within its bounds."""

from collections.abc import Sequence
from difflib import get_close_matches

MOST = 16  # allowed values that a message lists beside the nearest


def check_choice(what: str, value: str | None, allowed: Sequence[str]) -> None:
    """ValueError that names the nearest allowed value unless `value` is allowed."""
    if value in allowed:
        return
    close = get_close_matches(str(value), allowed, n=1)
    hints = [f"did you mean {close[0]!r}?"] if close else []
    if not close or len(allowed) <= MOST:
        hints.append(f"allowed: {', '.join(allowed) or 'none'}")
    raise ValueError(f"{what} {value!r} is unknown; {' '.join(hints)}")


def check_number(
    what: str,
    value: float,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """ValueError that names the bounds unless `value` is within: `least` is allowed, the others are not."""
    bounds = {"at least": least, "above": above, "below": below}
    fits = (least is None or value >= least) and (above is None or value > above)
    if fits and (below is None or value < below):
        return
    allowed = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    raise ValueError(f"{what} = {value:g}: must be {allowed}")
