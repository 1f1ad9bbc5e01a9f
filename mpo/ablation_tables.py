"""An ablation's results as tables, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpo.ablation_results import Result, Results
from mpo.ablation_roles import LEVEL, Kept
from mpo.significance import Estimate

ROLES = ["arm", "dimension", "role", "change", "95 % interval", "p", "found"]


@dataclass(frozen=True)
class Table:
    """Words and numbers as they are shown."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    align: str  # l for words or r for numbers, a letter a column


def tables(found: Results, kept: Sequence[Kept] = ()) -> list[Table]:
    """By each reward the change that each arm makes, and how it differs from the base arm; then, where arms
    hold or ignore dimensions, what became of each role."""
    rewards = list(dict.fromkeys(reward for reward, _ in found.scores))
    made = [_changes(found, reward) for reward in rewards]
    made += [_differences(found, reward) for reward in rewards]
    return [*made, Table(_roles(kept), ROLES, _role_rows(found, kept), "lllrrrl")] if kept else made


def markdown(found: Results, kept: Sequence[Kept] = ()) -> str:
    """The tables in Markdown."""
    texts = []
    for table in tables(found, kept):
        lines = [table.header, ["---" if one == "l" else "---:" for one in table.align], *table.rows]
        texts += [f"**{table.caption}**", "\n".join("| " + " | ".join(row) + " |" for row in lines)]
    return "\n\n".join(texts + ([_missing(found)] if found.missing else [])) + "\n"


def latex(found: Results, kept: Sequence[Kept] = ()) -> str:
    """The same tables for booktabs, as wide as the text at most (graphicx)."""

    def tex(table: Table) -> str:
        body = "\n".join(" & ".join(_tex(cell) for cell in row) + r" \\" for row in table.rows)
        return (
            "\\begin{table}\n\\centering\n\\small\n"
            f"\\caption{{{_tex(table.caption)}}}\n"
            "\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%\n"
            f"\\begin{{tabular}}{{{table.align}}}\n\\toprule\n"
            + " & ".join(_tex(cell) for cell in table.header)
            + f" \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}}}\n\\end{{table}}\n"
        )

    packages = "% \\usepackage{booktabs,graphicx}\n"
    return packages + "\n".join(map(tex, tables(found, kept)))


def _changes(found: Results, reward: str) -> Table:
    seeds = sorted({len(seeds) for seeds in found.seeds.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    several = seeds[-1] > 1
    caption = (
        f"{found.ablation.name}: change by the {reward} on held-out prompts against the original model, "
        f"mean over {count} seed{'s' if several else ''}" + (" and half its 95 % interval" if several else "")
    )
    return _table(found, reward, caption, lambda one: _spread(one.change))


def _differences(found: Results, reward: str) -> Table:
    caption = (
        f"Difference to the base arm ({', '.join(found.arms[0].labels.values())}) by the {reward} and p, "
        "paired over seeds and prompts, by Holm over the arms in each score; * below 0.05"
    )
    return _table(found, reward, caption, _difference)


def _table(found: Results, reward: str, caption: str, cell: Callable[[Result], str]) -> Table:
    """A row for each arm, a column for each score of one reward."""
    keys = [key for key in found.scores if key[0] == reward]
    header = ["arm", "pairs", *(" ".join(key).replace("_", " ") for key in keys)]
    rows = [
        [
            ", ".join(arm.labels.values()),
            f"{found.pairs[arm.name]:,.0f}",
            *(cell(found.result(arm.name, key)) for key in keys),
        ]
        for arm in found.arms
    ]
    return Table(caption, header, rows, "l" + "r" * (len(header) - 1))


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
