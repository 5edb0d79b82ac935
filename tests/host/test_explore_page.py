"""The page of a search, in a real browser: it stands alone, reads well, and its specs are right."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, Page
from search_plans import TINY, written

from thermokron.host.explore import explore, load_plan
from thermokron.host.explore.charts import anchor
from thermokron.host.explore.numbers import between, si
from thermokron.host.explore.page import json_of, python_of, write_page
from thermokron.host.studies.runs import Store
from thermokron.host.tables import number
from thermokron.model import UnitSpec

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return explore(load_plan(written(folder, TINY)), folder / "out")


@pytest.fixture(scope="module", params=WIDTHS)
def shown(request, made):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with Page(made[1], request.param) as page:
        yield page


def test_nothing_is_wrong_and_nothing_is_loaded_beside(shown):
    assert shown.errors == []
    assert [address.partition(":")[0] for address in shown.asked] == ["file"]


def test_nothing_is_wider_than_the_window(shown):
    width = shown.run("innerWidth")
    assert shown.run("document.documentElement.scrollWidth") <= width
    wide = shown.run(
        "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, pre, svg') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


@in_a_browser
def test_all_that_can_be_searched_is_seen_beside_the_front(made, tmp_path, monkeypatch):
    found, _ = made
    wide = {"cells": 144, "coupling_bits": 12, "bias_bits": 12, "adc_bits": 12, "rhs_depth": 256}
    candidate = replace(found.front[0].candidate, settle=0.0123, ports=64)
    candidate = replace(candidate, spec=replace(candidate.spec, **wide, lanes=144, tau_s=1.23e-8))
    trials = [replace(one, candidate=candidate) for one in found.front]
    names = [name for name in candidate.table if name != "method"]
    monkeypatch.setattr("thermokron.host.explore.page._names", lambda found: names)
    path = write_page(replace(found, trials=tuple(trials)), Store(tmp_path / "runs"), tmp_path)
    with Page(path, 1280) as page:
        for table in ("front", "all"):
            box = f"document.getElementById('{table}').parentElement"
            assert page.run(f"{box}.scrollWidth <= {box}.clientWidth"), table


def test_what_is_there_is_seen(shown, made):
    found, _ = made
    for thing in ("h1", "#gains", "#front", "#all", "figure svg", "#settings", "#prices"):
        box = f"document.querySelector('{thing}').getBoundingClientRect()"
        assert shown.run(f"{box}.width") > 200, thing
        assert shown.run(f"{box}.height") > 20, thing
    assert shown.run("document.querySelectorAll('#front tbody tr').length") == len(found.front)
    everyone = len(found.distinct) + len(found.baselines)
    assert shown.run("document.querySelectorAll('#all tbody tr').length") == everyone
    known = [
        one for one in [*found.distinct, *found.baselines] if max(one.objectives) < float("inf")
    ]
    for chart in (0, 1):
        marks = f"document.querySelectorAll('figure')[{chart}].querySelectorAll('svg a').length"
        assert shown.run(marks) == len(known)
        front = f"document.querySelectorAll('figure')[{chart}].querySelectorAll('svg .{{}}').length"
        assert shown.run(front.format("front")) == len(found.holding)
        assert shown.run(front.format("fails")) == len(found.front) - len(found.holding)


def test_text_can_be_told_from_its_ground_by_day_and_night(shown):
    luminance = """
        (name => {
          const [r, g, b] = getComputedStyle(document.body)[name].match(/\\d+/g).map(Number);
          return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
        })
    """
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        shown("Emulation.setEmulatedMedia", features=[feature])
        ink, ground = (shown.run(f"{luminance}('{name}')") for name in ("color", "backgroundColor"))
        assert (ink < ground) == (scheme == "light")
        assert abs(ink - ground) > 0.6


def test_a_mark_leads_to_its_spec_which_is_copied(shown, made):
    found, _ = made
    one = found.front[0]
    shown.run(f"location.hash = '#{anchor(one)}'")
    opened = f"document.getElementById('{anchor(one)}')"
    # the event comes after the script
    assert shown.run(f"new Promise(r => setTimeout(() => r({opened}.open), 50))") is True
    shown.run(
        "Object.defineProperty(navigator, 'clipboard', "
        "{ value: { writeText: async text => { window.copied = text; } }, configurable: true })"
    )
    copied = []
    for which in (0, 1):
        shown.run(f"{opened}.querySelectorAll('button.copy')[{which}].click()")
        copied.append(shown.run("new Promise(r => setTimeout(() => r(window.copied), 10))"))
    assert copied == [json_of(one), python_of(found, one)]
    assert UnitSpec.from_json(copied[0]) == one.candidate.spec


def test_a_heading_sorts_by_number_and_turns_round(shown):
    values = (
        "[...document.querySelectorAll('#all tbody tr')].map(r => Number(r.children[2]"
        ".dataset.value))"
    )
    click = "document.querySelectorAll('#all th')[2].querySelector('button').click()"
    shown.run(click)
    rising = shown.run(values)
    assert rising == sorted(rising)
    shown.run(click)
    assert shown.run(values) == rising[::-1]


@in_a_browser
def test_it_reads_without_scripts(made, tmp_path):
    text = re.sub(r"<script>.*?</script>", "", made[1].read_text(), flags=re.DOTALL)
    bare = tmp_path / "bare.html"
    bare.write_text(text, encoding="utf-8")
    with Page(bare, 1280) as page:
        assert page.errors == []
        button = "getComputedStyle(document.querySelector('button.copy')).display"
        assert page.run(button) == "none"  # that would do nothing
        assert page.run("document.querySelectorAll('#all tbody tr').length") > 3
        assert page.run("document.querySelector('details pre').textContent.length") > 100


# ---- without one ------------------------------------------------------------------------------


class Balance(HTMLParser):
    """Whether tags are closed in order."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_tags_are_closed_and_what_a_plan_says_is_no_markup(made, tmp_path):
    found, _ = made
    hostile = '<script>alert("x")</script> & "quotes"'
    plan = replace(found.plan, title=hostile)
    path = write_page(replace(found, plan=plan), Store(tmp_path / "runs"), tmp_path)
    text = path.read_text()
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)") == 2  # title and heading
    balance = Balance()
    balance.feed(text)
    assert balance.wrong == []
    assert balance.open == []


def test_it_says_who_holds_and_gains_over_the_default_unit(made, tmp_path):
    found, path = made
    default = found.baselines[0].objectives
    (gains,) = re.findall(r'<table id="gains">.*?</table>', path.read_text(), re.DOTALL)
    for time in (one.objectives[0] for one in found.chosen.values()):
        assert f"<small>{number(time / default[0], 2)} ×</small>" in gains
    for fails in (0.1, -0.1):
        again = {name: replace(one, violation=fails) for name, one in found.again.items()}
        path = write_page(replace(found, again=again), Store(tmp_path / "runs"), tmp_path)
        (front,) = re.findall(r'<table id="front".*?</table>', path.read_text(), re.DOTALL)
        assert front.count('<td class="text">no</td>') == len(found.front) * (fails > 0.0)
        assert front.count('<td class="text">holds</td>') == len(found.front) * (fails < 0.0)
        assert ("None of the front holds" in path.read_text()) == (fails > 0.0)


def test_the_program_on_the_page_trains_on_the_candidate(made):
    found, _ = made
    one = found.front[0]
    told = {}
    exec(python_of(found, one).replace("print(", "told.append("), {"told": (losses := [])}, told)
    assert told["spec"] == one.candidate.spec
    assert losses == [one.outcomes[0].train_loss[1:]]


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (3.14159e-6, "s", "3.14 µs"),
        (1e-6, "s", "1.00 µs"),
        (999e-9, "s", "999 ns"),
        (12.0, "J", "12.0 J"),
        (0.0, "s", "0 s"),
        (2.5e-7, "m2", "0.250 mm²"),
        (2.5e-9, "m2", "2500 µm²"),
        (float("inf"), "s", "–"),
    ],
)
def test_numbers_have_prefixes(value, unit, told):
    assert si(value, unit) == told


def test_intervals_have_one_unit():
    assert between(1.67e-5, 3.2e-5, "s") == "17–32 µs"
    assert between(9.7e-7, 1.6e-5, "J") == "0.97–16 µJ"
    assert between(2.7e-7, 1.1e-6, "m2") == "0.27–1.1 mm²"
