"""An ablation's results as tables, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from mpo.ablation_results import Result, Results
from mpo.significance import Estimate

LEVEL = 0.05


def markdown(found: Results) -> str:
    """Two tables: the change that each arm makes, and how it differs from the base arm."""
    header, changes, differences = _cells(found)

    def table(rows: Sequence[Sequence[str]]) -> str:
        lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines)

    texts = [f"**{_caption(found)}**", table(changes), f"**{_against(found)}**", table(differences)]
    return "\n\n".join(texts + ([_missing(found)] if found.missing else [])) + "\n"


def latex(found: Results) -> str:
    """The same two tables for booktabs."""
    header, changes, differences = _cells(found)

    def table(caption: str, rows: Sequence[Sequence[str]]) -> str:
        body = "\n".join(" & ".join(_tex(cell) for cell in row) + r" \\" for row in rows)
        return (
            "\\begin{table}\n\\centering\n\\small\n"
            f"\\caption{{{_tex(caption)}}}\n"
            f"\\begin{{tabular}}{{lr{'r' * (len(header) - 2)}}}\n\\toprule\n"
            + " & ".join(_tex(cell) for cell in header)
            + f" \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )

    return table(_caption(found), changes) + "\n" + table(_against(found), differences)


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
    p = "<.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}".lstrip("0")
    return f"{one.against.mean:+.3f}{star} ({p})"


def _tex(text: str) -> str:
    special = {"±": r"$\pm$", "–": "--", "<": r"$<$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(special.get(sign, sign) for sign in text)
