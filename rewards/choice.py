"""A value among those allowed."""

from collections.abc import Sequence
from difflib import get_close_matches


def check_choice(what: str, value: str | None, allowed: Sequence[str]) -> None:
    """ValueError that names the nearest allowed value unless `value` is allowed."""
    if value in allowed:
        return
    close = get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed) or 'none'}"
    raise ValueError(f"{what} {value!r} is unknown; {hint}")
