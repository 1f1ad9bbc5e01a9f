"""A scored checklist: yes/no questions with weights, grouped into sub-dimensions and dimensions.

VisionReward (arXiv 2412.21059, section 3) turns the answers of a judge into a reward: each answer is coded as
a number, weighted, and summed. This module is that arithmetic; it never sees a picture or a model.

Shapes: Q questions, F features, K scored columns (features, then the questions that carry weight), S
sub-dimensions, D dimensions; leading dimensions are free.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from rewards.choice import check_choice

LEVELS = ("total", "dimension", "subdimension", "question")
CODINGS = ("signed", "binary")
REDUCTIONS = ("sum", "mean")
MODALITIES = ("image", "video")
PROMPT = "[[prompt]]"


@dataclass(frozen=True)
class Question:
    """One yes/no question; "yes" is good. `[[prompt]]` in `text` stands for the prompt of the item.

    `gate` is the id of a question that asks whether there is anything to judge: where it is answered "no",
    this question contributes 0. A question of weight 0 is asked but is no part of the score (a gate is one).
    """

    id: str
    text: str
    dimension: str = ""
    subdimension: str = ""
    weight: float = 0.0
    gate: str | None = None


@dataclass(frozen=True)
class Feature:
    """A number in [0, 1] that another model measures, such as VQAScore; enters the score uncoded.

    `model` names the model that the weight was learned with.
    """

    id: str
    dimension: str
    subdimension: str
    weight: float
    model: str


@dataclass(frozen=True)
class Scores:
    """Coded answers and weighted contributions at every level; each level adds up to `total`. NaN where
    missing.
    """

    answers: Tensor  # [..., Q] coded and gated, before weights
    questions: Tensor  # [..., K]
    subdimensions: Tensor  # [..., S]
    dimensions: Tensor  # [..., D]
    total: Tensor  # [...]
    names: dict[str, tuple[str, ...]]  # level -> names of its columns

    def level(self, name: str) -> tuple[tuple[str, ...], Tensor]:
        """Column names and values [..., K] of a level: total | dimension | subdimension | question."""
        check_choice("level", name, LEVELS)
        values = {
            "total": self.total.unsqueeze(-1),
            "dimension": self.dimensions,
            "subdimension": self.subdimensions,
            "question": self.questions,
        }
        return self.names[name], values[name]


@dataclass(frozen=True)
class Checklist:
    """Questions and features with their coding and reduction.

    coding: `signed` counts yes as +1 and no as -1 (the release), `binary` as 1 and 0 (the paper's equation).
    reduction: `sum`, or `mean` over the columns that carry weight; each contribution is divided once, so
    every level still adds up to the total.
    modality: `image` or `video`, where the questions make sense of one only.
    """

    name: str
    questions: tuple[Question, ...]
    coding: str = "signed"
    reduction: str = "sum"
    features: tuple[Feature, ...] = ()
    modality: str | None = None

    def __post_init__(self):
        if self.modality is not None:
            check_choice(f"checklist {self.name}: modality", self.modality, MODALITIES)
        check_choice(f"checklist {self.name}: coding", self.coding, CODINGS)
        check_choice(f"checklist {self.name}: reduction", self.reduction, REDUCTIONS)
        object.__setattr__(self, "questions", tuple(self.questions))
        object.__setattr__(self, "features", tuple(self.features))
        _check_columns(self)
        _check_gates(self)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all Q questions, in the order in which they are asked."""
        return tuple(question.id for question in self.questions)

    @property
    def gates(self) -> tuple[str, ...]:
        """Ids of the questions that gate others."""
        used = {question.gate for question in self.questions}
        return tuple(question.id for question in self.questions if question.id in used)

    @property
    def columns(self) -> tuple[Feature | Question, ...]:
        """The K scored columns: features, then the questions that carry weight."""
        return (*self.features, *(question for question in self.questions if question.weight > 0))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the D dimensions, in the order of the columns."""
        return tuple(dict.fromkeys(column.dimension for column in self.columns))

    @property
    def subdimensions(self) -> tuple[str, ...]:
        """Names of the S sub-dimensions, in the order of the columns."""
        return tuple(dict.fromkeys(column.subdimension for column in self.columns))

    def names(self, level: str) -> tuple[str, ...]:
        """Names of the columns of a level: total | dimension | subdimension | question."""
        check_choice("level", level, LEVELS)
        return {
            "total": ("total",),
            "dimension": self.dimensions,
            "subdimension": self.subdimensions,
            "question": tuple(column.id for column in self.columns),
        }[level]

    def ask(self, prompt: str) -> list[str]:
        """The Q questions as asked about an item with this prompt."""
        return [question.text.replace(PROMPT, prompt) for question in self.questions]

    def score(self, p_yes: Tensor, features: Tensor | None = None) -> Scores:
        """Scores from P(yes) [..., Q] and features [..., F]; NaN, for missing, stays NaN up to the total.

        An answer is "yes" when P(yes) > 1/2. Scores are float64 on the CPU.
        """
        p_yes = torch.as_tensor(p_yes, dtype=torch.float64, device="cpu")
        if p_yes.shape[-1:] != (len(self.questions),):
            raise ValueError(
                f"checklist {self.name}: answers {list(p_yes.shape)}, needed [..., {len(self.questions)}]"
            )
        features = self._checked_features(features, p_yes.shape[:-1])
        answers = self.code(p_yes)
        values = torch.cat([features, answers[..., self._scored]], dim=-1)
        questions = values * self.scaled_weights()
        lead = questions.shape[:-1]
        sums = {
            "subdimensions": questions.new_zeros(*lead, len(self.subdimensions)),
            "dimensions": questions.new_zeros(*lead, len(self.dimensions)),
        }
        for level, total in sums.items():
            names = getattr(self, level)
            index = torch.tensor([names.index(getattr(column, level[:-1])) for column in self.columns])
            total.index_add_(-1, index, questions)
        names = {level: self.names(level) for level in LEVELS}
        return Scores(answers, questions, total=questions.sum(-1), names=names, **sums)

    def code(self, p_yes: Tensor) -> Tensor:
        """Coded answers [..., Q] from P(yes) [..., Q]: gated questions 0 where their gate is "no", NaN
        where missing.
        """
        yes, no = (1.0, -1.0) if self.coding == "signed" else (1.0, 0.0)
        raw = torch.where(p_yes > 0.5, yes, no).to(torch.float64)
        raw = torch.where(p_yes.isnan(), torch.nan, raw)
        answers = raw.clone()
        for column, question in enumerate(self.questions):
            if question.gate is not None:
                gate = raw[..., self.ids.index(question.gate)]
                gated = torch.where(gate == no, 0.0, raw[..., column])
                answers[..., column] = torch.where(gate.isnan(), torch.nan, gated)
        return answers

    def scaled_weights(self) -> Tensor:
        """What one unit of each scored column adds to the total [K]: its weight, divided by K for `mean`."""
        weights = torch.tensor([column.weight for column in self.columns], dtype=torch.float64)
        return weights / len(weights) if self.reduction == "mean" else weights

    def with_weights(self, weights: dict[str, float]) -> Checklist:
        """The same checklist with new weights by id; a column that is not named keeps its weight."""
        known = [column.id for column in (*self.features, *self.questions)]
        for name in weights:
            check_choice(f"checklist {self.name}: weight of", name, known)
        return replace(
            self,
            questions=tuple(replace(q, weight=float(weights.get(q.id, q.weight))) for q in self.questions),
            features=tuple(replace(f, weight=float(weights.get(f.id, f.weight))) for f in self.features),
        )

    @classmethod
    def from_release(
        cls, folder: str | Path, modality: str, policy: str = "release", questions: str = "select"
    ) -> Checklist:
        """VisionReward's own checklist, read from the release's files in `folder`; see `rewards.release`."""
        from rewards.release import read_release

        return read_release(folder, modality, policy, questions)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Checklist:
        """A checklist from a YAML file: name, modality, coding, reduction, `questions` and `features` as
        mappings by id.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a YAML file, since it is not text in UTF-8") from None
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: a checklist is a mapping with `name` and `questions`")
        _check_keys(str(path), content, ("name", "modality", "coding", "reduction", "questions", "features"))
        for key in ("name", "questions"):
            if not content.get(key):
                raise ValueError(f"{path}: `{key}` is missing")
        questions = _entries(path, "questions", content.pop("questions"), Question)
        features = _entries(path, "features", content.pop("features", None) or {}, Feature)
        try:
            return cls(**content, questions=questions, features=features)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_yaml(self, path: str | Path) -> None:
        """Writes the file that `from_yaml` reads."""
        content: dict[str, Any] = {
            "name": self.name,
            **({"modality": self.modality} if self.modality else {}),
            "coding": self.coding,
            "reduction": self.reduction,
            "questions": {question.id: _entry(question) for question in self.questions},
        }
        if self.features:
            content["features"] = {feature.id: _entry(feature) for feature in self.features}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
        part = Path(f"{path}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)

    @cached_property
    def _scored(self) -> list[int]:
        return [column for column, question in enumerate(self.questions) if question.weight > 0]

    def _checked_features(self, features: Tensor | None, lead: Sequence[int]) -> Tensor:
        shape = (*lead, len(self.features))
        if features is None:
            return torch.full(shape, torch.nan, dtype=torch.float64)
        features = torch.as_tensor(features, dtype=torch.float64, device="cpu")
        if features.shape != shape:
            raise ValueError(f"checklist {self.name}: features {list(features.shape)}, needed {list(shape)}")
        return features


def _check_columns(checklist: Checklist) -> None:
    where = f"checklist {checklist.name}"
    ids = [entry.id for entry in (*checklist.features, *checklist.questions)]
    for name in ids:
        if ids.count(name) > 1:
            raise ValueError(f"{where}: id {name!r} is used twice")
    parents: dict[str, str] = {}
    for entry in (*checklist.features, *checklist.questions):
        if not 0 <= entry.weight < float("inf"):
            raise ValueError(f"{where}: weight {entry.weight} of {entry.id!r} must be 0 or more")
        if entry.weight > 0 and not (entry.dimension and entry.subdimension):
            raise ValueError(
                f"{where}: {entry.id!r} carries weight, so it needs a dimension and a subdimension"
            )
        if entry.weight > 0 and parents.setdefault(entry.subdimension, entry.dimension) != entry.dimension:
            raise ValueError(
                f"{where}: subdimension {entry.subdimension!r} lies in {parents[entry.subdimension]!r} "
                f"and in {entry.dimension!r}"
            )
    if not checklist.columns:
        raise ValueError(f"{where}: no question carries weight, so there is nothing to score")
    for question in checklist.questions:
        if not question.text.strip():
            raise ValueError(f"{where}: question {question.id!r} has no text")


def _check_gates(checklist: Checklist) -> None:
    questions = {question.id: question for question in checklist.questions}
    for question in checklist.questions:
        if question.gate is None:
            continue
        check_choice(f"checklist {checklist.name}: gate of {question.id!r}:", question.gate, tuple(questions))
        gate = questions[question.gate]
        if gate.weight > 0 or gate.gate is not None:
            raise ValueError(
                f"checklist {checklist.name}: gate {gate.id!r} must have weight 0 and no gate of its own"
            )


def _check_keys(where: str, content: dict, allowed: Sequence[str]) -> None:
    for key in content:
        check_choice(f"{where}: key", key, allowed)


def _entries(path, section: str, content: Any, kind: type) -> tuple:
    """Questions or features of a YAML section, types checked."""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: `{section}` is a mapping from id to its fields")
    entries = []
    for name, values in content.items():
        where = f"{path}: {section}.{name}"
        if not isinstance(name, str) or not isinstance(values, dict):
            raise ValueError(f"{where}: needed an id (quote it if it is a word such as no) and its fields")
        _check_keys(where, values, [field.name for field in fields(kind) if field.name != "id"])
        for key, value in values.items():
            allowed = (int, float) if key == "weight" else (str,)
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise ValueError(
                    f"{where}.{key}: {value!r} is not a {'number' if key == 'weight' else 'string'}"
                )
        try:
            entries.append(kind(id=name, **values))
        except TypeError:
            raise ValueError(f"{where}: needed {', '.join(f.name for f in fields(kind)[1:])}") from None
    return tuple(entries)


def _entry(item: Question | Feature) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(item)}
    return {k: v for k, v in asdict(item).items() if k != "id" and v != defaults[k]}
