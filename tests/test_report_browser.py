"""The report page in a real browser, headless Chromium: it runs without errors and network, and reacts to keys.

A script is put into a copy of the page; it plays the user and writes what it saw into the document, which Chromium
prints. Chromium draws no frames for that, so the script hands them out itself.
"""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from caloforge.evaluate.page import render
from caloforge.geometry import Geometry, Layer
from test_evaluate_page import PLANES, RINGS, few, only, report_of, toy

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: install chromium or google-chrome to test the page"
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
         "--no-first-run", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000")  # fmt: skip
WATCH = """<script>
window.seen = {errors: []};
window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 5);
window.cancelAnimationFrame = clearTimeout;
addEventListener("error", (event) => seen.errors.push(event.message));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.errors.push("blocked " + event.blockedURI));
</script>"""
ACT = """<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const key = (target, name) =>
  target.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
addEventListener("load", async () => {
  await wait(300);
  try { await (async () => { %s })(); } catch (error) { seen.errors.push(String(error)); }
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>"""


@pytest.fixture(scope="module")
def pages():
    """Two candidates in cartesian layers, one in polar layers."""
    reference, rings = toy(PLANES, 120), toy(RINGS, 120)
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        only(patch, "observables", "judges")
        return {
            "planes": render([report_of(reference, toy(PLANES, 120, k), name) for k, name in ((1, "one"), (2, "two"))]),
            "rings": render([report_of(rings, toy(RINGS, 120, 1), "round")]),
        }


def browse(page, folder, script, width=1200, flags=()):
    """What the script put into ``seen``; errors and requests are checked."""
    file = folder / "report.html"
    text = page.replace("<head>", "<head>" + WATCH).replace("</body>", ACT.replace("%s", script) + "</body>")
    file.write_text(text, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, *flags, f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.S)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert "CONSOLE" not in done.stderr, done.stderr
    return seen


PIXELS = 'const pixels = (n) => document.querySelectorAll("canvas")[n].toDataURL();'


@pytest.mark.parametrize("name", ["planes", "rings"])
def test_the_viewer_turns_zooms_and_steps(pages, tmp_path, name):
    seen = browse(pages[name], tmp_path, PIXELS + """
        const canvas = document.querySelector("canvas"), all = document.querySelectorAll("canvas").length;
        seen.canvases = all;
        canvas.focus();
        let before = [pixels(0), pixels(all - 1)];
        seen.changed = {};
        for (const name of ["ArrowRight", "ArrowUp", "+", "-", "n", "p", "0"]) {
            key(canvas, name);
            await wait(150);
            const now = [pixels(0), pixels(all - 1)];
            seen.changed[name] = now[0] !== before[0] && now[1] !== before[1];
            before = now;
        }
        seen.first = pixels(0);
        key(canvas, "n");
        await wait(100);
        document.querySelector('[data-do="previous"]').click();
        await wait(100);
        seen.back = pixels(0) === seen.first;
        delete seen.first;
        const slider = document.getElementById("least");
        slider.value = "0.99";
        slider.dispatchEvent(new Event("input"));
        await wait(100);
        seen.hidden = pixels(0) !== before[0];
        seen.label = canvas.getAttribute("aria-label");
        seen.steps = document.getElementById("which").options.length;
    """)  # fmt: skip
    assert seen["canvases"] == (3 if name == "planes" else 2)
    assert all(seen["changed"].values()), seen["changed"]
    assert seen["back"]
    assert seen["hidden"]
    assert seen["steps"] == 12
    assert re.match(r"Geant4: .* incident, .* in \d+ voxels\. Arrow keys turn", seen["label"])


def test_the_picture_shows_the_energies(tmp_path):
    """One hot voxel at the left of the front view, in the colour of the end of the scale; the cold one is not."""
    geometry = Geometry("two", (Layer("cartesian", (-10, 0, 10), (-10, 10), (0, 20)),))
    showers = toy(geometry, 60)
    energy = np.tile(np.float32([100, 0.01]), (60, 1))
    hot = type(showers)(geometry, showers.incident, energy)
    with pytest.MonkeyPatch.context() as patch:
        only(patch)
        page = render([report_of(hot, hot, "same")])
    seen = browse(page, tmp_path, """
        document.querySelector('[data-do="front"]').click();
        await wait(150);
        const canvas = document.querySelector("canvas"), [w, h] = [canvas.width, canvas.height];
        const row = canvas.getContext("2d").getImageData(0, Math.round(h * 0.45), w, 1).data;
        const at = (x) => [...row.slice(4 * Math.round(x), 4 * Math.round(x) + 3)];
        seen.around = [w / 2 - 0.15 * h, w / 2 + 0.15 * h].map(at);
    """)  # fmt: skip
    bright = [sum(pixel[:3]) for pixel in seen["around"]]
    assert max(bright) > 300 > 2 * min(bright), seen["around"]


def test_a_figure_opens_and_closes(pages, tmp_path):
    seen = browse(pages["rings"], tmp_path, """
        const box = document.getElementById("lightbox"), buttons = [...document.querySelectorAll("main .zoom")];
        buttons[0].focus();
        buttons[0].click();
        seen.open = box.open;
        seen.shown = document.querySelectorAll("#plate svg").length;
        seen.shape = document.querySelector("#plate svg").getAttribute("aria-label");
        key(box, "ArrowRight");
        seen.other = document.querySelector("#plate svg").getAttribute("aria-label");
        box.querySelector('[data-do="close"]').click();
        await wait(50);
        seen.closed = !box.open && document.querySelectorAll("#plate svg").length === 0;
        seen.focus = document.activeElement === buttons[1];
        seen.named = buttons.every((button) => button.getAttribute("aria-label").length > 20);
    """)  # fmt: skip
    assert (seen["open"], seen["shown"], seen["closed"], seen["focus"], seen["named"]) == (True, 1, True, True, True)
    assert seen["shape"] != seen["other"]


def test_candidates_can_be_hidden(pages, tmp_path):
    seen = browse(pages["planes"], tmp_path, """
        const count = () => [...document.querySelectorAll("canvas")].filter((c) => c.clientWidth).length;
        const lines = () => getComputedStyle(document.querySelector("svg .of-2")).display;
        seen.before = [count(), lines()];
        document.querySelector('[data-candidate="2"]').click();
        await wait(50);
        seen.after = [count(), lines()];
        document.querySelector('[data-candidate="2"]').click();
        await wait(50);
        seen.again = [count(), lines()];
    """)  # fmt: skip
    assert seen["before"] == seen["again"] == [3, "inline"]
    assert seen["after"] == [2, "none"]


NARROW = """
    const frame = document.createElement("iframe");
    frame.style.cssText = "width: WIDTHpx; border: 0";
    frame.srcdoc = document.documentElement.outerHTML.replace(/<script[^]*?<\\/script>/g, "");
    document.body.append(frame);
    await wait(500);
    for (const part of frame.contentDocument.querySelectorAll("details")) part.open = true;
    seen.width = [frame.contentDocument.documentElement.scrollWidth, frame.contentWindow.innerWidth];
"""


@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_does_not_scroll_sideways(pages, tmp_path, width):
    seen = browse(pages["planes"], tmp_path, NARROW.replace("WIDTH", str(width)))
    assert seen["width"][0] <= seen["width"][1] == width


def test_print_unfolds_everything_and_takes_the_controls_away(pages, tmp_path):
    (tmp_path / "report.html").write_text(pages["rings"], encoding="utf-8")
    seen = browse(pages["rings"], tmp_path, PIXELS + """
        const before = pixels(0), folded = document.querySelectorAll("details:not([open])").length;
        dispatchEvent(new Event("beforeprint"));
        seen.during = [document.querySelectorAll("details:not([open])").length, pixels(0) !== before];
        dispatchEvent(new Event("afterprint"));
        seen.after = document.querySelectorAll("details:not([open])").length === folded && pixels(0) === before;
        const rules = [...document.styleSheets[0].cssRules].filter((rule) => rule.conditionText === "print");
        seen.print = rules[0].cssText.includes(".controls");
    """)  # fmt: skip
    assert seen["during"] == [0, True]
    assert seen["after"]
    assert seen["print"]
