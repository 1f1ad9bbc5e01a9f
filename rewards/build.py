"""From settings to a judge and a reward. Heavy imports stay inside the branches that need them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.checklist import Checklist
from rewards.choice import check_choice
from rewards.settings import KINDS, RewardSettings, read_settings

if TYPE_CHECKING:
    from rewards.judges.base import FeatureModel, Judge
    from rewards.vision_reward import VisionReward

BATCH_SIZE = 16  # media in one pass of a judge, at most
_FEATURE_KEYS = {
    "vqascore": ("path", "tokenizer", "dtype", "device", "batch_size", "allow_pickled_weights"),
    "clip": ("path", "processor", "dtype", "device", "batch_size"),
    "judge": (),
}


def load_reward(config: str | Path | Mapping | Any) -> VisionReward:
    """A reward from a YAML file, a mapping, or a dataclass with the fields of `RewardSettings`."""
    settings = read_settings(config)
    if not settings.checklist:
        raise ValueError(
            "reward: `checklist` is missing: a YAML file, a folder of the release's files, or a name"
        )
    checklist = load_checklist(settings.checklist, settings.policy, settings.questions)
    return assemble(settings, checklist)


def assemble(settings: RewardSettings, checklist: Checklist) -> VisionReward:
    """The reward with the judge, the features and the cache of `settings`, and this checklist."""
    from rewards.cache import AnswerCache
    from rewards.vision_reward import VisionReward

    check_reward(settings, checklist)
    judge = load_judge(
        settings.judge,
        kind=settings.kind,
        template=settings.template,
        dtype=settings.dtype,
        device=settings.device,
        batch_size=settings.batch_size or BATCH_SIZE,
        frames=settings.frames,
    )
    features = {
        name: load_feature(name, values, judge, settings) for name, values in settings.features.items()
    }
    cache = AnswerCache(settings.cache) if settings.cache else None
    return VisionReward(judge, checklist, cache, features, settings.min_mass, settings.batch_size)


def check_reward(settings: Any, checklist: Checklist) -> None:
    """ValueError for what no judge can be asked, before one is loaded. `settings` as of `RewardSettings`."""
    from rewards.cogvlm2.tokens import CUES
    from rewards.media import read_rule
    from rewards.vision_reward import require_features

    read_rule(settings.frames)
    template = settings.template
    if template is not None and "{question}" not in template and template not in CUES:
        raise ValueError(f"template {template!r} has no {{question}}, nor is it one of {', '.join(CUES)}")
    require_features(checklist, settings.features)
    wanted = [feature.id for feature in checklist.features]
    for name in settings.features:
        check_choice(f"checklist {checklist.name}: features", name, wanted)


def load_judge(
    path: str | Path,
    kind: str | None = None,
    template: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    frames: str = "per_second",
) -> Judge:
    """A judge from a folder or hub id: any image-text-to-text model of transformers, or CogVLM2 in the
    house.
    """
    from rewards.media import read_rule

    read_rule(frames)  # a rule that is none is told before anything is loaded
    kind = kind or detect_kind(path)
    options = {
        "template": template,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "frames": frames,
    }
    check_choice("judge kind", kind, KINDS)
    match kind:
        case "transformers":
            from rewards.judges.transformers_vlm import TransformersJudge

            return TransformersJudge.load(path, **options)
        case "cogvlm2":
            from rewards.judges.cogvlm2 import CogVLM2Judge

            return CogVLM2Judge.load(path, **options)


def load_checklist(source: str | Path, policy: str = "release", questions: str = "select") -> Checklist:
    """A checklist from a YAML file, a folder of the release's files, or the name of a fetched one."""
    from rewards.fetch import RELEASES, fetched_folder
    from rewards.release import release_modality

    if str(source) in RELEASES:
        source = fetched_folder(str(source))
    path = Path(source)
    if path.is_dir():
        return Checklist.from_release(path, release_modality(path), policy, questions)
    if not path.is_file():
        raise ValueError(f"checklist {source}: no such file or folder, nor one of {', '.join(RELEASES)}")
    return Checklist.from_yaml(path)


def load_feature(name: str, values: Mapping, judge: Judge, settings: RewardSettings) -> FeatureModel:
    """The model that measures a feature: `vqascore` (CLIP-FlanT5), `clip` (CLIPScore by any CLIP-like
    model) or `judge` (the judge's own P(yes)).
    """
    check_choice(f"features.{name}.kind", values.get("kind"), tuple(_FEATURE_KEYS))
    options = {key: value for key, value in values.items() if key != "kind"}
    for key in options:
        check_choice(f"features.{name}: key", key, _FEATURE_KEYS[values["kind"]])
    match values["kind"]:
        case "vqascore":
            from rewards.vqascore import VQAScore

            return VQAScore.load(**{"dtype": settings.dtype, "device": settings.device, **options})
        case "clip":
            from rewards.baselines import Similarity

            if not options.get("path"):
                raise ValueError(f"features.{name}: `path` is missing: a CLIP-like model's folder or hub id")
            return Similarity.load(**{"dtype": settings.dtype, "device": settings.device, **options})
        case "judge":
            from rewards.alignment import JudgeAlignment

            return JudgeAlignment(judge)


def detect_kind(path: str | Path) -> str:
    """`cogvlm2` when the judge's config.json names a CogVLM architecture, `transformers` otherwise."""
    config = Path(path) / "config.json"
    if not config.is_file():
        if Path(path).exists():
            raise ValueError(f"{path}: no config.json, so this is not a model folder")
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_CACHE

        from rewards.judges.loading import check_place, quiet

        check_place(path)
        try:  # at once, where the download of a single file would be tried again and again
            with quiet():
                found = snapshot_download(str(path), allow_patterns="config.json")
        except OSError:
            raise ValueError(
                f"{path}: no such folder, and a model neither of the hub (as far as it can be reached) "
                f"nor of its cache {HF_HUB_CACHE}"
            ) from None
        config = Path(found) / "config.json"
        if not config.is_file():
            raise ValueError(f"{path}: no config.json, so this is not a model")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{config}: not valid JSON ({error})") from None
    architectures = content.get("architectures") or []
    if not architectures and not content.get("model_type"):
        raise ValueError(
            f"{config}: names neither `architectures` (such as CogVLMVideoForCausalLM) nor a `model_type`"
        )
    return "cogvlm2" if any(name.startswith("CogVLM") for name in architectures) else "transformers"
