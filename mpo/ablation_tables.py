"""An ablation's results as tables, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from mpo.ablation_results import Result, Results
from mpo.ablation_roles import LEVEL, Kept
from mpo.significance import Estimate

ROLES = ["arm", "dimension", "role", "change", "95 % interval", "p", "found"]


def markdown(found: Results, kept: Sequence[Kept] = ()) -> str:
    """The change that each arm makes, how it differs from the base arm, and, where arms hold or ignore
    dimensions, what became of each role."""
    header, changes, differences = _cells(found)

    def table(rows: Sequence[Sequence[str]], header: Sequence[str] = header) -> str:
        lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines)

    texts = [f"**{_caption(found)}**", table(changes), f"**{_against(found)}**", table(differences)]
    if kept:
        texts += [f"**{_roles(kept)}**", table(_role_rows(found, kept), ROLES)]
    return "\n\n".join(texts + ([_missing(found)] if found.missing else [])) + "\n"


def latex(found: Results, kept: Sequence[Kept] = ()) -> str:
    """The same tables for booktabs."""
    header, changes, differences = _cells(found)

    def table(caption: str, rows: Sequence[Sequence[str]], header: Sequence[str] = header) -> str:
        body = "\n".join(" & ".join(_tex(cell) for cell in row) + r" \\" for row in rows)
        return (
            "\\begin{table}\n\\centering\n\\small\n"
            f"\\caption{{{_tex(caption)}}}\n"
            f"\\begin{{tabular}}{{lr{'r' * (len(header) - 2)}}}\n\\toprule\n"
            + " & ".join(_tex(cell) for cell in header)
            + f" \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )

    tables = [table(_caption(found), changes), table(_against(found), differences)]
    if kept:
        tables.append(table(_roles(kept), _role_rows(found, kept), ROLES))
    return "\n".join(tables)


def _cells(found: Results) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Header, rows of changes, rows of differences."""
    header = ["arm", "pairs", *(f"{reward} {score}".replace("_", " ") for reward, score in found.scores)]
    changes, differences = [], []
    for arm in found.arms:
        label = ", ".join(arm.labels.values())
        row = [found.result(arm.name, key) for key in found.scores]
        pairs = f"{found.pairs[arm.name]:,.0f}"
        changes.append([label, pairs, *(_spread(one.change) for one in row)])
        differences.append([label, pairs, *(_difference(one) for one in row)])
    return header, changes, differences


def _caption(found: Results) -> str:
    seeds = sorted({len(seeds) for seeds in found.seeds.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{found.ablation.name}: change on held-out prompts against the original model, mean over {count} "
        f"seed{'s' if seeds[-1] > 1 else ''}" + (" and half its 95 % interval" if seeds[-1] > 1 else "")
    )


def _against(found: Results) -> str:
    return (
        f"Difference to the base arm ({', '.join(found.arms[0].labels.values())}) and p, paired over seeds "
        "and prompts, by Holm over the arms in each score; * below 0.05"
    )


def _roles(kept: Sequence[Kept]) -> str:
    return (
        f"What each arm asks for, and its change by the {kept[0].reward} with its 95 % interval over seeds "
        "and prompts; p of a rise in what is to improve by Holm over all rows of that role, else uncorrected"
    )


def _role_rows(found: Results, kept: Sequence[Kept]) -> list[list[str]]:
    labels = {arm.name: ", ".join(arm.labels.values()) for arm in found.arms}
    rows = []
    for one in kept:
        change, p = one.change, "–" if one.p is None else _p(one.p)
        interval = "–" if change.low is None else f"{change.low:+.3f} to {change.high:+.3f}"
        verdict = {"rose": "rose", "fell": "fell"}.get(one.verdict, "no clear change")
        rows.append([labels[one.arm], one.dimension, one.role, f"{change.mean:+.3f}", interval, p, verdict])
    return rows


def _missing(found: Results) -> str:
    return f"{found.missing} runs are not complete and not counted."


def _spread(one: Estimate) -> str:
    if one.high is None:
        return f"{one.mean:+.3f}"
    return f"{one.mean:+.3f} ± {one.high - one.mean:.3f}"


def _difference(one: Result) -> str:
    if one.against is None:
        return "–"
    if one.p_holm is None:
        return f"{one.against.mean:+.3f}"
    star = "*" if one.p_holm < LEVEL else ""
    return f"{one.against.mean:+.3f}{star} ({_p(one.p_holm)})"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _tex(text: str) -> str:
    special = {"±": r"$\pm$", "–": "--", "<": r"$<$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(special.get(sign, sign) for sign in text)
