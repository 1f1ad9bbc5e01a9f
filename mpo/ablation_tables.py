"""An ablation's results as tables, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpo.ablation_results import Result, Results
from mpo.ablation_roles import LEVEL, Kept
from mpo.significance import Estimate

ROLES = ["arm", "dimension", "role", "change", "95 % interval", "p", "found"]


@dataclass(frozen=True)
class Table:
    """Words and numbers as they are shown; the first two columns are words."""

    caption: str
    header: list[str]
    rows: list[list[str]]


def tables(found: Results, kept: Sequence[Kept] = ()) -> list[Table]:
    """The change that each arm makes, how it differs from the base arm, and, where arms hold or ignore
    dimensions, what became of each role."""
    header, changes, differences = _cells(found)
    made = [Table(_caption(found), header, changes), Table(_against(found), header, differences)]
    return [*made, Table(_roles(kept), ROLES, _role_rows(found, kept))] if kept else made


def markdown(found: Results, kept: Sequence[Kept] = ()) -> str:
    """The tables in Markdown."""
    texts = []
    for table in tables(found, kept):
        lines = [table.header, ["---"] * 2 + ["---:"] * (len(table.header) - 2), *table.rows]
        texts += [f"**{table.caption}**", "\n".join("| " + " | ".join(row) + " |" for row in lines)]
    return "\n\n".join(texts + ([_missing(found)] if found.missing else [])) + "\n"


def latex(found: Results, kept: Sequence[Kept] = ()) -> str:
    """The same tables for booktabs."""

    def tex(table: Table) -> str:
        body = "\n".join(" & ".join(_tex(cell) for cell in row) + r" \\" for row in table.rows)
        return (
            "\\begin{table}\n\\centering\n\\small\n"
            f"\\caption{{{_tex(table.caption)}}}\n"
            f"\\begin{{tabular}}{{lr{'r' * (len(table.header) - 2)}}}\n\\toprule\n"
            + " & ".join(_tex(cell) for cell in table.header)
            + f" \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )

    return "\n".join(map(tex, tables(found, kept)))


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
