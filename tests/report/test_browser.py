"""The report in a real browser, without network: drawn in light and dark, printed, its structure read back."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hwopt.report.render import render
from tests.conftest import DigitsRun

BROWSER = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt install chromium)")


def browse(page: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-extensions",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--log-level=0",
            f"--user-data-dir={page.parent / 'profile'}", *more, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(digits_run: DigitsRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(digits_run.record, "html"), encoding="utf-8")
    return path


class Outline(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.tables: list[dict[str, int]] = []
        self.regions: list[str] = []
        self.language = ""
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in given:
            self.ids[given["id"]] += 1
        if tag == "html":
            self.language = given.get("lang", "")
        if tag == "a":
            self.links.append(given.get("href", ""))
        if tag == "svg":
            self.pictures.append(given.get("aria-label", "") if given.get("role") == "img" else "")
        if tag == "table":
            self.tables.append({"col": 0, "row": 0})
        if tag == "th":
            self.tables[-1][given.get("scope", "none")] += 1
        if given.get("role") == "region":
            self.regions.append(given.get("aria-label", ""))
            assert given.get("tabindex") == "0"


def test_structure(page: Path) -> None:
    said = browse(page, "--dump-dom")
    assert said.returncode == 0, said.stderr
    outline = Outline()
    outline.feed(said.stdout)
    assert outline.language == "en"
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    for before, after in zip(outline.headings, outline.headings[1:], strict=False):
        assert after <= before + 1, "a level of headings is left out"
    assert max(outline.ids.values()) == 1
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert outline.pictures
    assert all(len(words) > 10 for words in outline.pictures)
    assert all(table["col"] and table["row"] for table in outline.tables)
    assert all(outline.regions)
    assert (
        outline.tags["script"] == outline.tags["img"] == outline.tags["link"] == outline.tags["iframe"] == 0
    )
    assert outline.tags["main"] == outline.tags["nav"] == 1
    numbers = [int(n) for n in re.findall(r'<h2 id="s(\d+)"', said.stdout)]
    assert numbers == list(range(1, 14))


def test_nothing_is_fetched_and_nothing_is_refused(page: Path) -> None:
    said = browse(page, "--dump-dom")
    console = [line for line in said.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    assert "Content Security Policy" not in said.stderr


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn(page: Path, scheme: str, tmp_path: Path) -> None:
    picture = tmp_path / f"{scheme}.png"
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    said = browse(page, f"--screenshot={picture}", "--window-size=1100,1600", *dark)
    assert picture.is_file(), said.stderr
    from PIL import Image

    colours = Image.open(picture).convert("RGB").resize((110, 160)).getcolors(maxcolors=20_000)
    assert colours is not None
    assert len(colours) > 50  # not an empty page
    _, background = max(colours)
    assert (sum(background) > 600) == (scheme == "light"), background


def test_it_prints(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "report.pdf"
    said = browse(page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert pdf.is_file(), said.stderr
    contents = pdf.read_bytes()
    assert contents.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page[^s]", contents))
    assert 4 <= pages <= 60


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast(page: Path) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, in both schemes."""
    blocks = re.findall(r":root \{([^}]*--fg[^}]*)\}", page.read_text(encoding="utf-8"))
    assert len(blocks) >= 2
    for block in blocks:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        ground = colours["bg"]
        for name in ("fg", "dim", "good", "bad", "open", "accent"):
            bright, dim = sorted((_luminance(colours[name]), _luminance(ground)), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{name} on {ground}"
