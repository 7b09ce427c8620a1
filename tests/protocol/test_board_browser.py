"""The page in a real browser: Chromium without a window, spoken to by WebDriver's plain HTTP."""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import board_runs as runs
import pytest

from protocol.board import export
from protocol.board.board import make_board
from protocol.records.load import load_records

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
    ),
]


class Browser:
    """A session; `do` runs a script in the page and gives what it returns."""

    def __init__(self, base):
        self.base = base
        options = {
            "goog:chromeOptions": {
                "binary": CHROMIUM,
                "args": ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"],
            },
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self.post("session", {"capabilities": {"alwaysMatch": options}})
        self.base += f"/session/{session['sessionId']}"

    def post(self, path, body):
        request = urllib.request.Request(
            f"{self.base}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def close(self):
        urllib.request.urlopen(urllib.request.Request(self.base, method="DELETE"), timeout=60)

    def do(self, script):
        return self.post("execute/sync", {"script": script, "args": []})

    def element(self, selector):
        found = self.post("element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def click(self, selector):
        self.post(f"element/{self.element(selector)}/click", {})

    def type(self, selector, text):
        self.post(f"element/{self.element(selector)}/clear", {})
        self.post(f"element/{self.element(selector)}/value", {"text": text})

    def names(self):
        return self.do(
            "return [...document.querySelectorAll('tbody.row:not([hidden]) .open')]"
            ".map((x) => x.textContent)"
        )


@pytest.fixture(scope="module")
def browser():
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        port = next(
            m[1] for line in process.stdout if (m := re.search(r"successfully on port (\d+)", line))
        )
        yield (found := Browser(f"http://127.0.0.1:{port}"))
        found.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """A board of five rows at two budgets, one of them of a hostile name, opened."""
    root = tmp_path_factory.mktemp("board")
    probes = [("probe/era", 0.5), ("probe/genre", 0.25)]
    for name, value, size in (("beta", 2.2, 1), ("alpha", 2.1, 3), ("gamma", 2.0, 2)):
        values = [value, value + 0.01, value + 0.02]
        more = {"model": {"layers": [f"{name}+mlp"]}, "scores": probes}
        runs.candidate(root / "runs", name, values, params=size * 10**6, **more)
    study = {"study": {"candidate": HOSTILE}, "model": {"layers": [HOSTILE]}}
    runs.candidate(root / "runs", "evil", [2.5, "NaN", 2.52], **study)
    study = {"study": {"value": 2 * runs.STUDY["value"]}, "flops": 2 * runs.FLOPS}
    runs.candidate(root / "runs", "delta", [1.8, 1.81, 1.82], params=4 * 10**6, **study)
    export.write_board(make_board(*load_records([root / "runs"])), root)
    browser.post("url", {"url": (root / "leaderboard.html").as_uri()})
    return browser


def test_it_sorts(page):
    assert page.names() == ["gamma", "alpha", "beta", HOSTILE, "delta"]
    header = "thead th:nth-child({})"
    page.click(header.format(2) + " button")
    assert page.names()[:4] == [HOSTILE, "alpha", "beta", "gamma"]
    page.click(header.format(2) + " button")
    assert page.names()[:4] == ["gamma", "beta", "alpha", HOSTILE]
    page.click(header.format(3) + " button")
    assert page.names()[:4] == ["gamma", "alpha", "beta", HOSTILE]  # what has no mean comes last
    page.click(header.format(3) + " button")
    assert page.names()[:4] == ["beta", "alpha", "gamma", HOSTILE]
    order = page.do("return document.querySelector('thead th:nth-child(3)').ariaSort")
    assert order == "descending"


def test_it_filters(page):
    page.type("#filter", "alp")
    assert page.names() == ["alpha"]
    assert page.do("return document.getElementById('shown').textContent") == "1 of 5 rows"
    drawn = "return document.querySelectorAll('[data-curves] path.line').length"
    assert page.do(drawn) == 1  # the mean over three seeds
    page.type("#filter", "nothing like it")
    assert page.names() == []
    page.type("#filter", " ")
    assert len(page.names()) == 5 and page.do(drawn) == 5
    # What is said of all groups together has no rows, and stays.
    assert page.do("return document.querySelector('.whole').offsetHeight") > 0


def test_every_chart_is_drawn(page):
    for chart, marks in (
        ("dots", "path.mark"),
        ("pareto", "path.mark"),
        ("isoflop", "path.mark"),
        ("curves", "path.line"),
        ("curves", "path.band"),
        ("probes", "rect.cell"),
    ):
        count = f"return document.querySelectorAll('[data-{chart}] {marks}').length"
        assert page.do(count) >= 4 - (chart == "dots"), chart
    assert not page.do("return document.body.innerHTML.includes('NaN ')")


def test_a_row_shows_its_command(page):
    more = "return document.querySelector('#s1g0r0m').hidden"
    assert page.do(more) is True
    page.click("#s1g0r0 .open")
    assert page.do(more) is False
    command = page.do("return document.querySelector('#s1g0r0m pre').textContent")
    assert command == "uv run train.py --config=configs/gamma.py:tiny --config.seed=0"


def test_light_and_dark(page):
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = page.do(paper)
    page.click("#theme")
    after = page.do(paper)
    page.click("#theme")
    assert before != after and page.do(paper) == before


def test_a_hostile_name_stays_text_and_nothing_is_said(page):
    """covers S6"""
    assert page.names().count(HOSTILE) == 1
    assert page.do("return document.querySelectorAll('img, iframe').length") == 0
    assert page.do("return document.scripts.length") == 2
    with pytest.raises(urllib.error.HTTPError) as dialog:  # no such alert
        page.post("alert/dismiss", {})
    assert dialog.value.code == 404
    time.sleep(0.2)
    said = page.post("se/log", {"type": "browser"})
    assert said == []


def test_the_policy_stops_other_scripts(page):
    page.do(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1';"
        "document.body.append(s); const i = document.createElement('img');"
        "i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)"
    )
    assert page.do("return window.pwned === undefined")
    said = " ".join(entry["message"] for entry in page.post("se/log", {"type": "browser"}))
    assert "script-src" in said and "img-src" in said


@pytest.fixture(scope="module")
def small_page(browser, tmp_path_factory):
    """A board with baselines and a candidate of two runs, opened."""
    root = tmp_path_factory.mktemp("small")
    names = {"seen/token_2": 2.3, "seen/token_3": 2.0, "split/xz": 2.4}
    scores = [(f"test/baseline/{name}", value) for name, value in names.items()]
    for name, values in (("a longer name than most", [2.1, 2.11, 2.12]), ("two", [2.1, 2.25])):
        shared = {"model": {"layers": [f"{name}+mlp"]}, "scores": scores}
        runs.candidate(root / "runs", name, values, params=len(values) * 10**6, **shared)
    export.write_board(make_board(*load_records([root / "runs"])), root)
    browser.post("url", {"url": (root / "leaderboard.html").as_uri()})
    return browser


@pytest.mark.parametrize("width", [500, 768, 1280])
def test_it_fits_the_window_and_marks_fit_their_charts(small_page, width):
    """Also the interval of two runs, which is wider than its chart."""
    small_page.post("window/rect", {"width": width, "height": 1000})
    time.sleep(0.3)
    too_wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert small_page.do(too_wide) == 0
    tables = "[...document.querySelectorAll('.scroll')].map((x) => x.scrollWidth - x.clientWidth)"
    assert max(small_page.do(f"return {tables}")) <= 0
    outside = small_page.do(
        "return [...document.querySelectorAll('svg:not(.key)')].flatMap((svg) => {"
        "  const box = svg.getBoundingClientRect();"
        "  return [...svg.querySelectorAll('.bar, .mark, .run, .line, .level')].filter((x) => {"
        "    const b = x.getBoundingClientRect();"
        "    return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1"
        "      || b.bottom > box.bottom + 1; }).map((x) => x.outerHTML); })"
    )
    assert outside == []
    sizes = small_page.do(
        "return [...document.querySelectorAll('svg:not(.key)')].map((svg) =>"
        "  svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)"
    )
    assert sizes and min(sizes) > 0.95  # the text of charts is as large as the text around them
