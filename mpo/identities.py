"""What a run's inputs are: models, checklists and data by their content or commit. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import quickstart
from mpo.config import RunConfig
from mpo.store import Identities, hub_snapshot
from rewards.fetch import RELEASES, fetched_folder

_FEATURE_FILES = ("path", "tokenizer", "processor")  # keys of a feature that name files

_COMMON = ("facts.py", "scenes.py")
_ORACLES = {  # the code that decides what an oracle says
    "quickstart": ("oracle.py", "world.py", *_COMMON),
    "quickstart_video": ("video/oracle.py", "video/world.py", *_COMMON),
}


@dataclass(frozen=True)
class Inputs:
    """Settings of generator, reward and oracle that change what they make, with identities in place of paths;
    and pairs from elsewhere."""

    generator: dict[str, Any]
    reward: dict[str, Any]
    oracle: dict[str, Any] | None
    data: dict[str, str | None]  # empty where candidates are sampled


def identify(config: RunConfig, now: bool = True) -> Inputs:
    """What goes into a run. Errors and `now` as of `mpo.artifacts.resolve`."""
    identities = Identities(Path(config.store))

    def identity(setting: str, path: str) -> str | None:
        try:
            return identities.of(path, now)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{setting} = {error}") from error

    _check_model("generator.path", config.generator.path, "model_index.json")
    _check_model("reward.judge", config.reward.judge, "config.json")
    generator = settings_of(config.generator, "device") | {
        "path": identity("generator.path", config.generator.path)
    }
    reward = settings_of(config.reward, "device", "batch_size", "cache")
    reward["judge"] = identity("reward.judge", config.reward.judge)
    reward["checklist"] = identities.of(_checklist_path(config.reward.checklist))
    reward["features"] = {
        feature: {
            key: identity(f"reward.features.{feature}.{key}", value) if key in _FEATURE_FILES else value
            for key, value in values.items()
            if key not in ("device", "batch_size")
        }
        for feature, values in config.reward.features.items()
    }
    oracle = None
    if config.evaluate.oracle:
        sources = [Path(quickstart.__path__[0]) / name for name in _ORACLES[config.evaluate.oracle]]
        oracle = {
            "oracle": config.evaluate.oracle,
            "code": [identities.of(str(source)) for source in sources],
        }
    data = _data(config.pairs.source, identities, now) if config.pairs.source else {}
    return Inputs(generator, reward, oracle, data)


def _data(source: str, identities: Identities, now: bool) -> dict[str, str | None]:
    """What the pairs from elsewhere are: a folder by its content, a data set of the hub by its commit."""
    if Path(source).is_dir():
        return {"data": identities.of(source, now), "revision": None}
    if Path(source).is_file():
        raise FileNotFoundError(
            f"pairs.from = {source!r}: is a file; must be the folder that holds it, or a data set of the hub"
        )
    try:
        snapshot = hub_snapshot(source, online=now, kind="dataset")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"pairs.from = {error}") from error
    revision = snapshot and snapshot.name
    return {"data": f"{source}@{revision}", "revision": revision}


def _checklist_path(source: str) -> str:
    """The file or folder of a checklist, which may be given by the name of a fetched one."""
    if source in RELEASES:
        return str(fetched_folder(source))
    if not Path(source).exists():
        names = ", ".join(RELEASES)
        raise FileNotFoundError(f"reward.checklist = {source}: no such file or folder, nor one of {names}")
    return source


def _check_model(setting: str, path: str, index: str) -> None:
    """Refuse a local folder that holds no model, before anything is made with it."""
    folder = Path(path)
    if not folder.is_dir():
        return  # a hub id, which is looked up
    if not (folder / index).is_file():
        raise FileNotFoundError(f"{setting} = {path!r}: has no {index}, so it is no model folder")
    if not any(folder.rglob("*.safetensors")):
        raise FileNotFoundError(f"{setting} = {path!r}: has no weights (*.safetensors)")


def settings_of(section: Any, *without: str) -> dict[str, Any]:
    """A section of the config as a dict."""
    return {name: value for name, value in asdict(section).items() if name not in without}
