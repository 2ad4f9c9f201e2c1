"""The site builds without a warning, fetches nothing, and warns of what it should."""

import re
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT


def build(source, out):
    """(exit status, what was said) of the command of `make docs`."""
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(source), str(out)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.returncode, found.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    status, said = build(ROOT / "docs", out)
    assert status == 0, said
    return out


def test_nothing_is_fetched(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]+)\"", text)
        assert not [url for url in loaded if "//" in url], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet


def test_every_page_is_reached(site):
    """From the index, by links alone."""
    seen, ahead = set(), [site / "index.html"]
    while ahead:
        page = ahead.pop()
        if page in seen:
            continue
        seen.add(page)
        links = re.findall(r"href=\"([^\":#]+\.html)", page.read_text())
        ahead += [target for link in links if (target := (page.parent / link).resolve()).is_file()]
    assert {page for page in site.rglob("*.html") if page.parent.name not in ("_static", "_modules")} <= seen


BROKEN = {
    "[gone](nowhere.md)": "nowhere.md",
    "[gone](other.md#no-such-heading)": "no-such-heading",
    "![gone](images/none.png)": "none.png",
    "```{eval-rst}\n:func:`autopar.nothing`\n```": "autopar.nothing",
}


def test_what_is_broken_is_found(tmp_path):
    source = tmp_path / "docs"
    source.mkdir()
    settings = (ROOT / "docs" / "conf.py").read_text().replace("Path(__file__).parent", f"Path({str(ROOT / 'docs')!r})")
    settings = settings.replace('    "public_names",\n', "")
    (source / "conf.py").write_text(settings + "\nhtml_static_path, html_css_files = [], []\n")
    (source / "other.md").write_text("# Other\n\n## Heading\n")
    lines = "\n\n".join(BROKEN)
    (source / "index.md").write_text(f"# Index\n\n[ok](other.md#heading)\n\n{lines}\n\n```{{toctree}}\nother\n```\n")
    status, message = build(source, tmp_path / "out")
    assert status != 0
    assert [said for said in BROKEN.values() if said not in message] == []
    assert message.count("WARNING") == len(BROKEN), message
