"""The page in a real browser: left out where no Chromium is installed."""

from __future__ import annotations

import html
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.machine import CHROMIUM
from support.report_runs import write_run

from speceval.show.report import write

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

FRAME = """<!DOCTYPE html><iframe id="frame" width="{width}" height="800" src="{page}"></iframe><pre id="found"></pre>
<script>
document.getElementById("frame").onload = (event) => {{
  const page = event.target.contentDocument, window_ = event.target.contentWindow;
  page.querySelectorAll("details").forEach((one) => (one.open = true));
  window_.scrollTo(0, 0);
  const cells = (label, which) => [...page.querySelectorAll(`[aria-label="${{label}}"] ${{which}}`)].map((one) => (
    one.closest(".wide").getBoundingClientRect().right - one.getBoundingClientRect().right));
  const reached = (one) => (one.focus(), page.activeElement === one);
  document.getElementById("found").textContent = JSON.stringify({{
    wide: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    loaded: window_.performance.getEntriesByType("resource").filter((one) => !one.name.startsWith("data:")).length,
    pictures: [...page.images].filter((one) => one.complete && one.naturalWidth > 100).length,
    keyboard: [...page.querySelectorAll("a, summary, [tabindex]")].every(reached),
    tokens: page.querySelectorAll(".token").length,
    styled: window_.getComputedStyle(page.querySelector(".lengths")).display,
    title: page.title,
    decision: cells("Table of differences", "td.decided, td.soft"),
    picture: page.images.length ? page.images[0].getBoundingClientRect().bottom + window_.scrollY : null,
  }});
}};
</script>"""


def chromium(*arguments: str) -> str:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=True).stdout


def look(page: Path, width: int) -> dict[str, Any]:
    """What a browser makes of the page in a window of this width."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, page=page.name))
    shown = chromium(f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", frame.as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', shown)
    assert found, shown[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs whose prompts and names are long and unbroken."""
    directory = tmp_path_factory.mktemp("page")
    runs = [
        write_run(directory / name[:1], draft=name, suites=("s" * 300,), user=lambda row: "<b>" + "x" * 5000, seed=seed)
        for seed, name in enumerate(("a", "b" * 300))
    ]
    write(runs, directory / "page.html")
    return directory / "page.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_loads_nothing_and_is_reached_by_keyboard(page: Path, width: int) -> None:
    found = look(page, width)
    assert found["wide"] <= 0
    assert found["loaded"] == 0
    assert found["pictures"] == 4
    assert found["keyboard"]
    assert found["tokens"] > 20


@pytest.mark.parametrize("width", [390, 1280])
def test_a_picture_of_the_decision_is_on_the_first_screen_and_its_column_needs_no_scrolling(
    tmp_path: Path, width: int
) -> None:
    runs = [
        write_run(tmp_path / draft, draft=draft, accept=accept, conversations=12, seed=1)
        for draft, accept in (("kl-eagle3", 0.5), ("lk-eagle3", 0.7))
    ]
    write(runs, tmp_path / "page.html")
    found = look(tmp_path / "page.html", width)
    assert len(found["decision"]) == 1 and found["decision"][0] >= 0
    assert found["picture"] < 800


def test_the_policy_lets_the_page_s_own_style_through_and_no_script(page: Path) -> None:
    planted = page.with_name("planted.html")
    script = "<script>document.title = 'ran'</script><img src=data:x onerror=\"document.title = 'ran'\">"
    text = page.read_text().replace("</main>", f"{script}<style>.lengths {{ display: grid }}</style></main>")
    planted.write_text(text)
    found = look(planted, 800)
    assert found["title"] != "ran" and found["styled"] == "flex"
    planted.write_text(re.sub("<meta http-equiv.*?>", "", text))
    assert look(planted, 800)["title"] == "ran", "without the policy it would run"


def test_the_page_prints(page: Path) -> None:
    out = page.with_suffix(".pdf")
    chromium(f"--user-data-dir={page.parent / 'profile'}", f"--print-to-pdf={out}", page.as_uri())
    assert out.read_bytes().startswith(b"%PDF") and out.stat().st_size > 20_000


@pytest.mark.slow
def test_a_page_of_1319_conversations_is_shown_within_two_seconds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", conversations=1319, seeds=1, steps=120, k=7, suites=("gsm8k",))
    write([run], tmp_path / "page.html")
    empty = tmp_path / "empty.html"
    empty.write_text("<!DOCTYPE html><title>nothing</title>")

    def fastest(file: Path) -> float:
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            chromium(f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}", file.as_uri())
            seconds.append(time.monotonic() - start)
        return min(seconds)

    assert fastest(tmp_path / "page.html") - fastest(empty) < 2
