"""The page of a run, from artifacts written by the code that writes them in earnest."""

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpo.artifacts import Artifacts, Run
from mpo.config import GRANULARITIES, RunConfig
from mpo.embed import data_uri
from mpo.evaluate import evaluation
from mpo.gallery import CARDS, coarse_to_fine, pack, spread
from mpo.objectives import at_granularity
from mpo.pairs import choose_pairs
from mpo.progress import step_gallery, step_means
from mpo.report import gather, page, render
from mpo.scores import read_scores, write_names, write_scores
from mpo.store import Artifact, write_json, write_table
from mpo.yields import yield_report
from rewards.checklist import Checklist, Question
from rewards.scorecard import Scorecard, scorecard

SAMPLES = {"prompt_id": "int64", "prompt": "string", "candidate": "int64", "seed": "int64", "media": "string"}
PAIRS = {"prompt_id": "int64", "winner": "int64", "loser": "int64", "gap": "double"}
CHECKLIST = Checklist(
    "tiny",
    tuple(
        Question(name, f"Is the {name} right?", dimension, name, weight)
        for name, dimension, weight in (
            ("colour", "alignment", 1.0),
            ("shape", "alignment", 0.5),
            ("place", "composition", 1.0),
            ("clarity", "quality", 0.7),
            ("<specks>", "quality", 0.3),
        )
    ),
)
ODD = 'a <b>bold</b> "prompt" & 🦊'


def plain(rng):
    return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (64, 64, 3))


def write_samples(folder, prompts, count, right, rng, draw=plain, checklist=CHECKLIST, missing=()):
    """Artifacts of samples and of their scores, where a question is answered yes at the rate `right`."""
    samples, scores = Artifact(folder / "samples", {}), Artifact(folder / "scores", {})
    (samples.folder / "media").mkdir(parents=True)
    scores.folder.mkdir()
    rows, cards = [], []
    for number, prompt in enumerate(prompts):
        for candidate in range(count):
            row = {"prompt_id": number, "prompt": prompt, "candidate": candidate, "seed": 7}
            rows.append(row | {"media": f"media/{number:06d}-{candidate:02d}.png"})
            Image.fromarray(draw(rng)).save(samples.folder / rows[-1]["media"])
            p_yes = torch.tensor(rng.random(len(checklist.ids)) < right).double() * 0.9 + 0.05
            if (number, candidate) in missing:
                cards.append(
                    Scorecard("x", prompt, "tiny", "sum", "signed", missing="the picture is corrupt")
                )
            else:
                found = checklist.score(p_yes)
                cards.append(scorecard("x", prompt, checklist, found, p_yes, torch.zeros(len(p_yes)), {}))
    write_table(samples.shard("candidates", 0), rows, SAMPLES)
    write_names(scores, checklist)
    write_scores(scores, 0, [(row["prompt_id"], row["candidate"]) for row in rows], cards, checklist)
    return samples, scores


def fake_run(folder, heldout=6, prompts=5, candidates=4, draw=plain, checklist=CHECKLIST, text=ODD):
    """A run with everything but the report, made from random answers."""
    rng = np.random.default_rng(0)
    names = [f"{text} {number}" for number in range(max(heldout, prompts))]
    missing = {(0, 0)}
    drawn, scored = write_samples(
        folder / "a", names[:prompts], candidates, 0.7, rng, draw, checklist, missing
    )
    base, base_scores = write_samples(folder / "b", names[:heldout], 1, 0.6, rng, draw, checklist)
    tuned, tuned_scores = write_samples(folder / "c", names[:heldout], 1, 0.9, rng, draw, checklist, missing)
    rest = [Artifact(folder / name, {}) for name in ("pairs", "training", "evaluation", "report")]
    for artifact in rest:
        artifact.folder.mkdir()
    pairs, training, evaluated, report = rest
    config = RunConfig(name="fox & <hen>", run_dir=str(folder / "run"))
    made = Artifacts(
        drawn, scored, pairs, training, base, base_scores, base_scores, tuned, tuned_scores, tuned_scores,
        evaluated, report,
    )  # fmt: skip
    run = Run(config, names[:prompts], names[:heldout], made)
    levels = read_scores(scored).levels
    found = {name: at_granularity(levels, name, {}) for name in GRANULARITIES}
    chosen = choose_pairs(found["dimension"], config.pairs, 0)
    columns = (chosen.prompt, chosen.winner, chosen.loser, chosen.gap)
    rows = [dict(zip(PAIRS, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    write_table(pairs.folder / "pairs.parquet", rows, PAIRS)
    write_json(pairs.folder / "yield.json", yield_report(found, [0.05, 0.1, 0.4]).to_dict())
    write_json(evaluated.folder / "evaluation.json", evaluation(run))
    keys = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "grad_norm",
    )
    keys += ("errors/winner_excess", "errors/loser_excess")
    log = [{"step": step, **{key: float(rng.normal()) / step for key in keys}} for step in range(10, 160, 10)]
    (training.folder / "log.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*log, {"step": 150}])
    )
    return run


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run):
    return render(run)


def embedded(html):
    """The JSON that the page's script lays out."""
    return json.loads(html.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_the_page_needs_nothing_but_itself(html):
    tags = Tags(html)
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "url(" not in html and "@import" not in html and not tags.all("link")
    assert not any("src" in script for script in tags.all("script"))
    addresses = set(re.findall(r"https?://[^\"'\s]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    (policy,) = (meta["content"] for meta in tags.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")


def test_names_and_prompts_are_escaped(html):
    assert "<b>bold" not in html and "<hen>" not in html and "<specks>" not in html
    content = embedded(html)
    assert all(ODD in card["prompt"] for part in content["galleries"].values() for card in part["cards"])
    assert content["galleries"]["pairs"]["rewards"]["judge"]["questions"][-1][1] == "Is the <specks> right?"


def test_pictures_are_those_of_the_cards_each_once(run, html):
    galleries, content = gather(run).galleries, embedded(html)
    assert len(galleries["heldout"].cards) == 5  # one of 6 has no score
    for name, gallery in galleries.items():
        cards = content["galleries"][name]["cards"]
        assert len(cards) == len(gallery.cards) == gallery.of > 0
        for card, shown in zip(gallery.cards, cards, strict=True):
            for sample, number in zip(card.samples, shown["samples"], strict=True):
                source = content["media"][content["samples"][number]["media"]]
                assert b64decode(source.split(",")[1]) == sample.media.read_bytes()
    files = {sample.media for part in galleries.values() for card in part.cards for sample in card.samples}
    assert len(content["media"]) == len(content["samples"]) == len(files)


def test_cards_have_both_scores_and_answers_and_their_change(run):
    made = run.artifacts
    base, tuned = (read_scores(artifact) for artifact in (made.base_scores, made.tuned_scores))
    heldout = gather(run).galleries["heldout"]
    assert heldout.steps == ("base", "tuned")
    assert heldout.rewards["judge"]["dimensions"] == ["alignment", "composition", "quality"]
    changes = []
    for card in heldout.cards:
        before, after = card.samples
        number = int(before.media.stem.split("-")[0])
        assert after.media.name == before.media.name and after.media.parts[-4] == "c"
        for sample, table in ((before, base), (after, tuned)):
            assert sample.dimensions["judge"] == table.levels["dimension"][1][number, 0].tolist()
            assert sample.p_yes["oracle"] == table.p_yes[number, 0].tolist()
        changes.append(card.change)
        total = sum(after.dimensions["judge"]) - sum(before.dimensions["judge"])
        assert card.change == pytest.approx(total) == after.totals["judge"] - before.totals["judge"]
    assert changes == sorted(changes, reverse=True)


def test_a_pair_shows_the_loser_first(run):
    pairs = gather(run).galleries["pairs"]
    assert pairs.steps == ("loser", "winner")
    for card in pairs.cards:
        assert card.change >= run.config.pairs.margin
        loser, winner = (sample.dimensions["judge"] for sample in card.samples)
        assert all(after >= before for before, after in zip(loser, winner, strict=True))  # it dominates


def test_the_page_states_what_the_evaluation_says(run, html):
    text = " ".join(" ".join(Tags(html).text).split())
    content = json.loads((run.artifacts.evaluation.folder / "evaluation.json").read_text())
    assert f"{content['judge']['prompts']} held-out prompts" in text and "1 more without a score" in text
    for row in content["judge"]["dimensions"].values():
        assert f"{row['delta']:+.3f}".replace("-", "\N{MINUS SIGN}")[:5] in text
    assert "1 (the picture is corrupt)" in text
    assert "A slider over checkpoints needs validate.every" in text  # this run has validated none


def test_a_curve_without_a_finite_value_is_left_out(run):
    report = gather(run)
    assert page(report).count("<figcaption>Loss</figcaption>") == 1
    for row in report.log:
        row["loss"] = float("nan")
    assert "<figcaption>Loss</figcaption>" not in page(report)


def test_what_fell_is_flagged(run):
    report = gather(run)
    assert "▼ fell" not in page(report)
    report.evaluation["oracle"]["regressions"] = ["quality"]
    assert page(report).count("▼ fell") == 1


def test_the_spread_has_both_ends():
    assert spread(5, 24) == [0, 1, 2, 3, 4]
    assert spread(1000, 4) == [0, 333, 666, 999]
    ranks = spread(800, CARDS)
    assert len(set(ranks)) == CARDS and ranks[0] == 0 and ranks[-1] == 799


def test_however_many_cards_fit_they_are_spread_over_all():
    order = list(coarse_to_fine(100))
    assert sorted(order) == list(range(100))
    assert order[:5] == [0, 99, 50, 25, 74]  # round(0.5 * 99) = 50, round(0.25 * 99) = 25
    for taken in (9, 17, 33):
        found = sorted(order[:taken])
        assert max(b - a for a, b in zip(found, found[1:], strict=False)) <= 99 / (taken - 1) + 1
    assert list(coarse_to_fine(1)) == [0] and list(coarse_to_fine(0)) == []


def test_a_gallery_embeds_no_more_than_its_share(run, monkeypatch):
    gallery = gather(run).galleries["pairs"]
    one = len(data_uri(gallery.cards[0].samples[0].media))
    monkeypatch.setattr("mpo.gallery.BYTES", 5 * one)
    found = pack({"pairs": gallery})
    cards = found["galleries"]["pairs"]["cards"]
    assert 0 < len(cards) < len(gallery.cards) and sum(map(len, found["media"])) < 9 * one
    assert cards[0]["change"] == pytest.approx(gallery.cards[0].change, rel=1e-3)
    assert cards[-1]["change"] == pytest.approx(gallery.cards[-1].change, rel=1e-3)


def test_large_pictures_are_scaled_down(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (1024, 512), (200, 30, 30)).save(path)
    kind, content = data_uri(path).split(";base64,")
    image = Image.open(BytesIO(b64decode(content)))
    assert kind == "data:image/jpeg" and image.size == (320, 160)
    assert np.abs(np.array(image).astype(int) - (200, 30, 30)).max() < 6


def test_a_clip_is_embedded_as_it_is():
    clip = Path(__file__).parents[1] / "golden" / "media" / "rotated.mp4"
    kind, content = data_uri(clip).split(";base64,")
    assert kind == "data:video/mp4" and b64decode(content) == clip.read_bytes()


def test_steps_that_were_validated_are_a_gallery_with_a_slider_and_curves(tmp_path):
    rng = np.random.default_rng(1)
    steps = {
        step: write_samples(tmp_path / str(step), ["a fox", "a hen", "a hat"], 1, right, rng, missing=missing)
        for step, right, missing in ((0, 0.2, ()), (50, 0.5, {(1, 0)}), (100, 0.9, ()))
    }
    gallery = step_gallery(steps)
    assert gallery.steps == ("step 0", "step 50", "step 100") and gallery.slider
    assert {card.prompt for card in gallery.cards} == {"a fox", "a hat"}  # the hen has no score at step 50
    for card in gallery.cards:
        assert [sample.media.parts[-4] for sample in card.samples] == ["0", "50", "100"]
        first, _, last = (sample.totals["judge"] for sample in card.samples)
        assert card.change == pytest.approx(last - first)
    means = step_means(steps)
    assert list(means) == ["total", "alignment", "composition", "quality"]
    table = read_scores(steps[50][1]).levels["dimension"][1]
    assert means["quality"][1] == (50, pytest.approx(table[[0, 2], 0, 2].mean().item()))
