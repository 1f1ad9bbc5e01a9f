"""Looks over a checklist before it is used: what its wording, its gates and its answers on a sample give
away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.checklist import PROMPT, Checklist

# A question about a fault, asked without a negation, makes "yes" bad.
_FAULTS = (
    "artefact artifact awkward bad bland blur blurred blurry broken chaotic clutter cluttered coarse "
    "crooked damaged deformed disfigured distorted distortion disturbing dull error extra flaw flicker "
    "flickering fragmented fuzzy garbled glitch grainy harmful harmfulness implausible incoherent "
    "incorrect inconsistent issue jitter jittery malformed missing mistake monotonous mutated noise "
    "noisy overexposed oversaturated pixelated rough shaky static ugly unattractive unclear "
    "underexposed unnatural unpleasant unrealistic unsafe unstable violation violent warped washed "
    "watermark wrong"
).split()
_NEGATIONS = r"\b(not|no|without|avoids?|free (of|from)|absence of|lacks?|lacking|never|nothing|none|n't)\b"
_FAULT = re.compile(rf"\b({'|'.join(_FAULTS)})(s|es)?\b")
_SHARE = 0.999  # of a sample with the same answer that counts as all of it


@dataclass(frozen=True)
class Finding:
    """One thing to look at: the question's id, or "" for the whole checklist, and what is the matter."""

    question: str
    text: str


def review(checklist: Checklist) -> list[Finding]:
    """What is suspicious in a checklist that loads; empty when nothing is.

    Unknown gates, gates with a weight, doubled ids, and weights without a question do not load at all.
    """
    return [
        *_duplicates(checklist),
        *_wording(checklist),
        *_unused(checklist),
        *_prompt(checklist),
    ]


def review_answers(checklist: Checklist, p_yes) -> list[Finding]:
    """Findings from P(yes) [items, Q] of a sample: questions that tell nothing apart, all answers no."""
    p_yes = np.asarray(p_yes, dtype=float)
    needed = len(checklist.questions)
    if p_yes.ndim != 2 or p_yes.shape[1] != needed:
        raise ValueError(f"checklist {checklist.name}: answers {list(p_yes.shape)}, needed [items, {needed}]")
    answered = np.isfinite(p_yes).all(axis=1)
    if not answered.any():
        raise ValueError(f"checklist {checklist.name}: no item of the sample has all answers")
    yes = p_yes[answered] > 0.5
    count = len(yes)
    findings = []
    if not yes.any():
        findings.append(
            Finding("", f"all {count} items got no to everything: check the judge's template and weights")
        )
    for question, share in zip(checklist.questions, yes.mean(axis=0), strict=True):
        if share <= 1 - _SHARE:
            findings.append(Finding(question.id, f"never answered yes on {count} items"))
        elif share >= _SHARE:
            findings.append(Finding(question.id, f"never answered no on {count} items"))
    return findings


def _duplicates(checklist: Checklist) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for question in checklist.questions:
        words = re.sub(r"\b(the|a|an)\b", " ", question.text.replace(PROMPT, "prompt").lower())
        key = " ".join(re.findall(r"\w+", words))
        earlier = first.setdefault(key, question.id)
        if earlier != question.id:
            yield Finding(question.id, f"asks the same as {earlier!r}, which then counts twice")


def _wording(checklist: Checklist) -> Iterator[Finding]:
    gates = checklist.gates
    for question in checklist.questions:
        text = question.text.replace(PROMPT, "").lower()
        fault, negated = _FAULT.search(text), re.search(_NEGATIONS, text)
        if fault and not negated and question.id not in gates:
            yield Finding(
                question.id, f'"yes" seems bad: it asks for {fault[0]!r}; ask whether it is avoided'
            )
        if not question.text.rstrip().endswith("?"):
            yield Finding(question.id, "is no question: it does not end in a question mark")


def _unused(checklist: Checklist) -> Iterator[Finding]:
    gates = checklist.gates
    for question in checklist.questions:
        if question.weight == 0 and question.id not in gates:
            yield Finding(question.id, "is asked for nothing: it has no weight and gates no other question")


def _prompt(checklist: Checklist) -> Sequence[Finding]:
    if checklist.features or any(PROMPT in question.text for question in checklist.questions):
        return []
    return [Finding("", f"no question mentions {PROMPT}: nothing asks whether the item fits its prompt")]
