"""VisionReward = judge + checklist: media and prompts in, scorecards out."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from rewards.cache import AnswerCache
from rewards.checklist import Checklist
from rewards.judges.base import Answers, Failure, FeatureModel, Judge
from rewards.media import Media, load_media
from rewards.scorecard import Scorecard, scorecard

ENOUGH = 20  # answers, all of them the same word, that make one suspect the judge


class VisionReward:
    """Scores media by a checklist that a judge answers.

    cache: raw answers on disk; with it a second run asks nothing again.
    features: per feature id of the checklist, the model that measures it; a feature without one is missing,
    and with it the score.
    min_mass: least probability that yes and no must hold together, on average over an item's questions. An
    item below is missing; when all are, the judge is not answering yes or no at all and that is an error.
    chunk: items held in memory at once, which the judge gets together; None: 4 clips, 16 images.
    ValueError for a checklist of clips with a judge of images, or the other way round.
    """

    def __init__(
        self,
        judge: Judge,
        checklist: Checklist,
        cache: AnswerCache | None = None,
        features: dict[str, FeatureModel] | None = None,
        min_mass: float = 0.5,
        chunk: int | None = None,
    ):
        self.judge = judge
        self.checklist = checklist
        self.cache = cache
        self.features = features or {}
        self.min_mass = min_mass
        self.chunk = chunk or (4 if judge.modality == "video" else 16)
        require_features(checklist, self.features)
        if checklist.modality not in (None, judge.modality) and judge.modality != "any":
            raise ValueError(
                f"checklist {checklist.name} asks about {checklist.modality}s, {judge.name} judges "
                f"{judge.modality}s"
            )

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides an answer or a score."""
        models = sorted((name, model.fingerprint) for name, model in self.features.items())
        parts = (self.judge.fingerprint, self.judge.frames, models, self.checklist)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def names(self, level: str) -> tuple[str, ...]:
        """Column names of a level: total | dimension | subdimension | question."""
        return self.checklist.names(level)

    def score(self, media, prompts) -> list[Scorecard] | Scorecard:
        """One scorecard an item, in order; a single medium gives a single scorecard.

        media: a path, a PIL image, a uint8 array [T, H, W, 3] or `Media`, or a list of such. prompts: one for
        all, or one an item. An item that cannot be read or judged gets a scorecard with a reason and no
        numbers; the others are scored.
        """
        if not isinstance(media, list | tuple):
            return self.score([media], [prompts])[0]
        if isinstance(prompts, str):
            prompts = [prompts] * len(media)
        return list(self.stream(media, prompts))

    def stream(
        self, media: Sequence, prompts: Sequence[str], silence_is_error: bool = True
    ) -> Iterator[Scorecard]:
        """Like `score` for many items, yielding each scorecard as it comes.

        silence_is_error: False where these are some of the items only, so that a judge may answer others.
        """
        if len(media) != len(prompts):
            raise ValueError(
                f"score: {len(media)} media and {len(prompts)} prompts; needed one prompt a medium"
            )
        watch = _Watch(self.judge.name, self.min_mass)
        items = zip(media, prompts, strict=True)
        while chunk := list(islice(items, self.chunk)):
            watch.warn_if_silent()
            yield from self._score_chunk(chunk, watch)
        if silence_is_error:
            watch.stop_if_silent()
        watch.warn_if_same()

    def _score_chunk(self, chunk: list[tuple], watch: _Watch) -> list[Scorecard]:
        loaded = [self._load(source) for source, _ in chunk]
        prompts = [prompt for _, prompt in chunk]
        results: list[Answers | Failure] = [item if isinstance(item, Failure) else None for item in loaded]
        rows = [row for row, item in enumerate(loaded) if isinstance(item, Media)]
        answers = self._ask([loaded[row] for row in rows], [prompts[row] for row in rows])
        for row, result in zip(rows, answers, strict=True):
            results[row] = watch.check(result, loaded[row])
        kept = [row for row in rows if isinstance(results[row], Answers)]
        measured = self._measure([loaded[row] for row in kept], [prompts[row] for row in kept])
        features: dict[int, dict[str, float | Failure]] = dict(zip(kept, measured, strict=True))
        return [
            self._card(source, prompt, loaded[row], results[row], features.get(row, {}))
            for row, (source, prompt) in enumerate(chunk)
        ]

    def _load(self, source) -> Media | Failure:
        try:
            media = load_media(source, self.judge.frames)
        except ValueError as error:
            return Failure(str(error))
        if self.judge.modality not in (media.kind, "any"):
            return Failure(
                f"{media.source}: {media.kind} given, {self.judge.name} judges {self.judge.modality}s"
            )
        if self.checklist.modality not in (media.kind, None):
            return Failure(
                f"{media.source}: {media.kind} given, checklist {self.checklist.name} asks about "
                f"{self.checklist.modality}s"
            )
        return media

    def _ask(self, media: list[Media], prompts: list[str]) -> list[Answers | Failure]:
        """Answers from the cache where it has them, from the judge elsewhere."""
        questions = [self.checklist.ask(prompt) for prompt in prompts]
        if self.cache is None:
            return self.judge.answer(media, questions) if media else []
        keys = [
            [self.cache.key(item.digest, question, self.judge.fingerprint) for question in asked]
            for item, asked in zip(media, questions, strict=True)
        ]
        known = self.cache.get([key for row in keys for key in row])
        todo: list[tuple[int, list[int]]] = []
        for row, row_keys in enumerate(keys):
            columns = [column for column, key in enumerate(row_keys) if key not in known]
            if columns:
                todo.append((row, columns))
        failed: dict[int, Failure] = {}
        if todo:
            asked = self.judge.answer(
                [media[row] for row, _ in todo],
                [[questions[row][c] for c in columns] for row, columns in todo],
            )
            fresh = {}
            for (row, columns), result in zip(todo, asked, strict=True):
                if isinstance(result, Failure):
                    failed[row] = result
                    continue
                pairs = zip(result.yes_logit.tolist(), result.no_logit.tolist(), strict=True)
                fresh.update({keys[row][column]: pair for column, pair in zip(columns, pairs, strict=True)})
            self.cache.put(fresh.items())
            known.update(fresh)
        return [
            failed.get(row) or _answers([known[key] for key in row_keys]) for row, row_keys in enumerate(keys)
        ]

    def _measure(self, media: list[Media], prompts: list[str]) -> list[dict[str, float | Failure]]:
        """Per item the value of each feature, from the cache where it has it."""
        columns: dict[str, list[float | Failure]] = {}
        for name in (feature.id for feature in self.checklist.features):
            model = self.features[name]
            values: list[float | Failure | None] = [None] * len(media)
            keys = [
                AnswerCache.key(m.digest, p, model.fingerprint) for m, p in zip(media, prompts, strict=True)
            ]
            if self.cache is not None:
                known = self.cache.get(keys)
                values = [known[key][0] if key in known else None for key in keys]
            rows = [row for row, value in enumerate(values) if value is None]
            if rows:
                fresh = model.measure([media[row] for row in rows], [prompts[row] for row in rows])
                for row, value in zip(rows, fresh, strict=True):
                    broken = isinstance(value, float) and math.isnan(value)
                    values[row] = Failure(f"{media[row].source}: {model.name} gave NaN") if broken else value
                if self.cache is not None:
                    self.cache.put(
                        (keys[row], (values[row],)) for row in rows if isinstance(values[row], float)
                    )
            columns[name] = values
        return [{name: values[row] for name, values in columns.items()} for row in range(len(media))]

    def _card(self, source, prompt: str, media, result, features: dict[str, float | Failure]) -> Scorecard:
        item = media.source if isinstance(media, Media) else str(source)
        broken = [value for value in (result, *features.values()) if isinstance(value, Failure)]
        checklist = self.checklist
        if broken:
            return Scorecard(
                item, prompt, checklist.name, checklist.reduction, checklist.coding, missing=broken[0].reason
            )
        values = torch.tensor([features[feature.id] for feature in checklist.features], dtype=torch.float64)
        scores = checklist.score(result.p_yes, values)
        notes = (*media.notes, *self._feature_notes(prompt))
        return scorecard(item, prompt, checklist, scores, result.p_yes, result.outside, features, notes)

    def _feature_notes(self, prompt: str) -> list[str]:
        """Says so where a feature is not measured by the model that its weight was learned with, or not of
        the whole prompt.
        """
        others = [
            f"{feature.id} by {self.features[feature.id].name}, not {feature.model}: not the release's score"
            for feature in self.checklist.features
            if Path(self.features[feature.id].name).name != feature.model
        ]
        cut = [f"{name}: {note}" for name, model in self.features.items() for note in model.notes(prompt)]
        return others + cut


def require_features(checklist: Checklist, given: Collection[str]) -> None:
    """ValueError for a feature of the checklist that no model is given for."""
    for feature in checklist.features:
        if feature.id not in given:
            raise ValueError(
                f"checklist {checklist.name}: feature {feature.id!r} of weight {feature.weight:.3f} "
                f"needs a model, such as {feature.model}; name one in the config at features.{feature.id}"
            )


class _Watch:
    """Looks at all answers of one call for a judge that does not answer, or that answers everything the
    same.
    """

    def __init__(self, judge: str, min_mass: float):
        self.judge = judge
        self.min_mass = min_mass
        self.answered: dict[str, tuple[bool, ...]] = {}  # by content
        self.first_reason: str | None = None
        self.warned = False

    def check(self, result: Answers | Failure, media: Media) -> Answers | Failure:
        """The same result, or a failure when yes and no hold too little of the probability."""
        if isinstance(result, Failure):
            return result
        mass = 1 - result.outside.mean().item()
        if math.isnan(mass):
            return Failure(f"{media.source}: {self.judge} answered with NaN")
        if mass < self.min_mass:
            reason = (
                f"{media.source}: yes and no hold {mass:.1%} of the probability of the first answer token of "
                f"{self.judge}, needed {self.min_mass:.0%}: its prompt template does not fit, or it was not "
                "tuned to answer yes or no"
            )
            self.first_reason = self.first_reason or reason
            return Failure(reason)
        self.answered[media.digest] = tuple((result.p_yes > 0.5).tolist())
        return result

    @property
    def silent(self) -> bool:
        """Whether every item so far was left without yes and no."""
        return self.first_reason is not None and not self.answered

    def warn_if_silent(self) -> None:
        """Warns once, so that a judge that does not answer is known long before the last item."""
        if self.silent and not self.warned:
            warnings.warn(f"no item has answers so far; {self.first_reason}", stacklevel=3)
            self.warned = True

    def stop_if_silent(self) -> None:
        """ValueError when no item has answers."""
        if self.silent:
            raise ValueError(self.first_reason)

    def warn_if_same(self) -> None:
        """Warns when several different items got the same answers to five questions or more, or each of them
        one word throughout, or one word as `ENOUGH` answers; and when a single item got no to ten or more.
        """
        distinct = set(self.answered.values())
        words = sorted({word for answers in distinct for word in answers})
        throughout = all(len(set(answers)) == 1 for answers in distinct)
        asked, several = min(map(len, distinct), default=0), len(self.answered) > 1
        if several:
            many = asked >= 5 or (len(words) == 1 and sum(map(len, self.answered.values())) >= ENOUGH)
            suspect = many and (throughout or len(distinct) == 1)
        else:
            suspect = asked >= 10 and words == [False]
        if not suspect:
            return
        said = ["yes" if word else "no" for word in words]
        what = " or ".join(f"{word} to everything" for word in said) if throughout else "the same answers"
        cause = f"a template after which {said[0]} always comes first" if len(said) == 1 else "its template"
        whom = f"all {len(self.answered)} items" if several else "the item"
        apart = ", so they cannot be told apart" if several and len(distinct) == 1 else ""
        warnings.warn(
            f"{self.judge} gave {whom} {what}{apart}; "
            f"the likely cause is {cause}, then its precision or its weights",
            stacklevel=3,
        )


def _answers(pairs: list[tuple[float, ...]]) -> Answers:
    values = torch.tensor(pairs, dtype=torch.float32)
    return Answers(values[:, 0], values[:, 1])
