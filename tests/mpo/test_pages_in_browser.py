"""The pages as a user meets them: opened in Chromium, filtered, moved through by keyboard, clips played.

Skipped where no chromium is on the PATH.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from playwright import sync_api as playwright
from test_ablation_results import ABLATION, asking, jobs  # noqa: F401
from test_compare import evaluated
from test_report import fake_run

from mpo.ablation_pages import show_results
from mpo.compare import compare_page, compare_runs
from mpo.config import ObjectiveConfig
from mpo.gallery import Card, Gallery, Sample
from mpo.report import Report, gather, page

CLIPS = [
    Path(__file__).parents[1] / "golden" / "media" / f"{name}.mp4" for name in ("rotated", "odd", "long")
]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on the PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    report = gather(fake_run(tmp_path_factory.mktemp("run"), heldout=30, prompts=8))
    samples = [
        Sample(clip, "a ball that rolls", {"judge": float(k)}, {"judge": [float(k)]}, {"judge": [0.9, k / 9]})
        for k, clip in enumerate(CLIPS)
    ]
    asked = {
        "judge": {"dimensions": ["dynamic"], "questions": [["a", "Does [[prompt]] move?"], ["b", "At all?"]]}
    }
    clips = Gallery(("base", "step 50", "tuned"), "total", True, asked, (Card(tuple(samples), 2.0),), 1)
    return report, replace(report, galleries={"heldout": clips, "pairs": report.galleries["pairs"]})


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report or HTML; fails the test if the page complained or asked for anything but itself."""
    complaints = []

    def open_page(report, **options):
        file = tmp_path / "report.html"
        file.write_text(page(report) if isinstance(report, Report) else report)
        tab = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}).new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url),
        )
        tab.goto(file.as_uri())
        return tab

    yield open_page
    assert complaints == []


def gallery(tab, name):
    return tab.locator(f'[data-gallery="{name}"]')


def shown(place):
    """How many cards pass the filters."""
    return int(place.locator("output").last.inner_text().split()[0])


def test_pairs_are_filtered_by_dimension_by_gap_and_by_words(opened, report):
    pairs = report[0].galleries["pairs"]
    place = gallery(opened(report[0]), "pairs")
    assert shown(place) == len(pairs.cards) and place.locator("article").count() == min(24, len(pairs.cards))
    place.get_by_label("dimension").select_option("quality")
    place.get_by_label("winner is").select_option("the same")
    quality = pairs.rewards["judge"]["dimensions"].index("quality")
    differences = [
        card.samples[1].dimensions["judge"][quality] - card.samples[0].dimensions["judge"][quality]
        for card in pairs.cards
    ]
    equal = sum(abs(difference) < 1e-5 for difference in differences)
    assert 0 < equal < len(pairs.cards) and shown(place) == equal
    reset = place.get_by_role("button", name="Reset")
    reset.focus()
    opened_at = reset.evaluate_handle("button => button")
    place.page.keyboard.press("Enter")
    assert not opened_at.evaluate("button => button.isConnected")  # the filters are laid out anew
    assert reset.evaluate("button => button === document.activeElement")
    place.get_by_label("least gap").fill("0.5")
    gaps = [card.change for card in pairs.cards]
    wide = sum(gap >= (min(gaps) + max(gaps)) / 2 for gap in gaps)
    assert 0 < wide < len(gaps) and shown(place) == wide
    place.get_by_label("least gap").fill("0")
    place.get_by_placeholder("words").fill("prompt 3")
    found = sum(card.prompt.endswith("3") for card in pairs.cards)
    assert 0 < found < len(gaps) and shown(place) == found


def decimal(value):
    """Two digits of a score as the page writes them: of four significant ones, with a true minus."""
    return f"{float(f'{value:.4g}'):.2f}".replace("-", "\N{MINUS SIGN}")


@pytest.mark.parametrize("name", ["heldout", "pairs"])
def test_a_cards_bars_and_answers_are_those_of_its_samples_each_on_its_side(opened, report, name):
    content = report[0].galleries[name]
    tab = opened(report[0])
    article = gallery(tab, name).locator("article").first
    prompt = article.locator(".prompt").inner_text()
    card = next(card for card in content.cards if card.prompt == prompt)
    first, second = card.samples
    judged = article.locator("table.dims").first
    scores = list(zip(first.dimensions["judge"], second.dimensions["judge"], strict=True))
    labels = judged.locator("svg.row").evaluate_all("rows => rows.map(row => row.getAttribute('aria-label'))")
    assert labels == [f"{decimal(before)} → {decimal(after)}" for before, after in scores]
    assert any(before != after for before, after in scores)
    article.click()
    asked = tab.locator("dialog table.asked").first
    assert asked.locator("thead th").all_inner_texts()[1:] == list(content.steps)
    rows = asked.locator("tr:has(td)")
    shown = [rows.nth(k).locator("td").all_inner_texts() for k in range(rows.count())]
    expected = []
    for before, after in zip(first.p_yes["judge"], second.p_yes["judge"], strict=True):
        cells = [f"{'yes' if p > 0.5 else 'no'} {p:.2f}" for p in (before, after)]
        turned = (after > 0.5) - (before > 0.5)
        expected.append([cells[0], cells[1] + {1: " ▲", 0: "", -1: " ▼"}[turned]])
    assert shown == expected and any(before.split()[0] != after.split()[0] for before, after in expected)


def test_the_keyboard_reaches_the_answers_and_the_large_view(opened, report):
    tab = opened(report[0])
    place = gallery(tab, "heldout")
    place.get_by_role("button", name="Reset").focus()
    tab.keyboard.press("Tab")
    answers = place.get_by_role("tooltip")
    questions = len(report[0].galleries["heldout"].rewards["judge"]["questions"])
    assert answers.locator("tbody tr, table > tr").count() == 2 * questions  # of judge and oracle
    assert "Is the <specks> right?" in answers.inner_text()
    tab.keyboard.press("ArrowRight")
    second = place.locator("article").nth(1)
    assert second.evaluate("element => element === document.activeElement")
    tab.keyboard.press("Enter")
    large = tab.locator("dialog")
    assert large.locator("h3").inner_text() == second.locator(".prompt").inner_text()
    tab.keyboard.press("ArrowRight")
    pictures = large.locator("img")
    assert pictures.nth(0).get_attribute("src") != pictures.nth(1).get_attribute("src")
    large.get_by_role("slider", name="step").fill("0")
    assert pictures.nth(0).get_attribute("src") == pictures.nth(1).get_attribute("src")
    tab.keyboard.press("Escape")
    assert tab.locator("dialog").count() == 0
    assert place.locator("article").nth(2).evaluate("element => element === document.activeElement")
    assert place.locator(".stepper output").inner_text() == "base"


def test_clips_play_and_the_slider_goes_over_all_steps(opened, report):
    tab = opened(report[1])
    place = gallery(tab, "heldout")
    clips = place.locator("article video")
    sources = []
    for step in ("1", "2"):
        place.get_by_role("slider", name="step").fill(step)
        sources.append(clips.nth(1).get_attribute("src"))
    assert len({clips.nth(0).get_attribute("src"), *sources}) == 3
    assert clips.nth(0).evaluate("clip => clip.paused")
    place.locator("article").hover()
    moving = (
        "clips => [...clips].every(clip => !clip.paused && clip.currentTime > 0.05 && clip.videoWidth > 0)"
    )
    tab.wait_for_function(f"() => ({moving})(document.querySelectorAll('article video'))", timeout=20000)
    assert "Does … move?" in place.get_by_role("tooltip").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_scrolls_one_way_only(opened, report, scheme):
    tab = opened(report[0], viewport={"width": 380, "height": 800}, color_scheme=scheme, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 380
    gallery(tab, "pairs").locator("article").first.tap()
    assert tab.locator("dialog .asked").count() == 1
    assert tab.evaluate("document.querySelector('dialog').scrollWidth") <= 380


def test_samples_without_a_score_and_changes_of_nothing_are_shown_as_that(opened, report):
    run = report[0]
    cards = []
    for card in run.galleries["heldout"].cards[:3]:
        first = card.samples[0]
        lost = replace(first, media=CLIPS[0], totals={}, dimensions={}, p_yes={})
        cards.append(Card((first, lost, first), 0.0))  # a step that could not be scored, and no change
    steps = replace(run.galleries["heldout"], steps=("step 0", "step 50", "step 100"), cards=tuple(cards))
    still = {"delta": 0.0, "ci95": [0.0, 0.0]}
    judge = run.evaluation["judge"]
    unmoved = judge | {"dimensions": {name: row | still for name, row in judge["dimensions"].items()}}
    galleries = run.galleries | {"validation": steps}
    changed = replace(run, galleries=galleries, evaluation=run.evaluation | {"judge": unmoved})
    tab = opened(changed, viewport={"width": 380, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 380  # no digits of rounding
    assert tab.get_by_role("link", name="Over training").get_attribute("href") == "#over-training"
    place = gallery(tab, "validation")
    assert not place.locator(".more").is_visible()  # three cards are all there are
    place.get_by_role("slider", name="step").fill("1")
    assert place.locator("article p.sum").all_inner_texts() == ["no score"] * 3
    for way in ("the same", "better", "worse"):
        place.get_by_label("shown is").select_option(way)
        assert shown(place) == 0  # what has no score went neither way
    place.get_by_label("shown is").select_option("anything")
    assert shown(place) == 3
    place.get_by_role("slider", name="step").fill("2")
    assert "no score" not in "".join(place.locator("article p.sum").all_inner_texts())


NARROW = {"width": 380, "height": 800}


def test_the_page_of_an_ablation_shows_its_tables_its_plots_and_every_arm(opened, jobs, tmp_path):  # noqa: F811
    hold = {"true*": ObjectiveConfig(role="hold")}
    show_results(replace(ABLATION, folder=str(tmp_path)), asking(jobs, {"better_&_so": hold}))
    html = (tmp_path / "ablation.html").read_text()
    tab = opened(html)
    assert tab.locator("h1").inner_text() == "trial"
    assert tab.locator("#seeds table").count() == 3  # changes, differences, roles
    better = tab.locator("#seeds table").nth(1).get_by_role("row", name="better_&_so")
    assert better.locator(".clear").count() >= 1 and "*" in better.locator(".clear").first.inner_text()
    verdict = tab.locator("#seeds table").nth(2).get_by_role("row", name="better_&_so sharp improve")
    assert verdict.locator("td.rise").inner_text() == "▲ rose"
    wide = "images => images.map(image => image.complete && image.naturalWidth > 300)"
    assert tab.locator("#figures img").evaluate_all(wide) == [True, True]  # an axis, and two dimensions
    place = gallery(tab, "samples")
    step = place.get_by_role("slider", name="step")
    colours = []
    for number in ("1", "2", "3"):
        step.fill(number)
        colours.append(place.locator("article img").nth(1).get_attribute("src"))
    assert len(set(colours)) == 3 and place.locator(".stepper output").inner_text() == "same-seed0"
    assert tab.get_by_role("link", name="At seed 0").get_attribute("href") == "#scores"
    small = opened(html, viewport=NARROW)
    assert small.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    right = "rows => rows.map(row => Math.round(row.children[1].getBoundingClientRect().right))"
    edges = small.locator("#scores table").first.locator("tbody tr").evaluate_all(right)
    assert len(set(edges)) == 1 < len(edges)  # scores one below another


def test_runs_side_by_side_are_moved_through_and_told_apart(opened, tmp_path):
    one = evaluated(tmp_path, "one", prompts=30)
    made, config = one.artifacts, replace(one.config, name="two", train=replace(one.config.train, beta=500.0))
    untuned = replace(made, tuned=made.base, tuned_scores=made.base_scores, tuned_facts=made.base_facts)
    runs = (one, replace(one, config=config, artifacts=untuned))
    html = compare_page(runs, "one, two")
    tab = opened(html)
    cells = [row[1] for rows in compare_runs(runs).scores.values() for row in rows.values()]
    sides = [("rise" if cell.delta > 0 else "fall") if cell.clear else "open" for cell in cells]
    drawn = tab.locator("#scores svg.row").evaluate_all("rows => rows.map(row => row.classList[1])")
    assert drawn == sides and set(sides) == {"fall", "open"}
    place = gallery(tab, "samples")
    place.get_by_role("slider", name="step").fill("1")
    assert place.locator("article figcaption").nth(1).inner_text() == "one"
    place.get_by_label("shown is").select_option("better")
    assert 0 < shown(place) < 30
    assert tab.get_by_role("row", name="train.beta").inner_text().split() == ["train.beta", "2000.0", "500.0"]
    small = opened(html, viewport=NARROW, color_scheme="dark")
    assert small.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
