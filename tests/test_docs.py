"""The documentation: what stands on its pages, where its links lead, and that nothing leaves them."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from daedalus import paths
from daedalus.pipeline import site
from daedalus.pipeline.reproduce import NOTEBOOKS, notebooks
from daedalus.results import notebook_code

MODULES = site.public_names()
EXAMPLE = '''
LIMIT = 3  # of bids

class Lot(Record):
    """A lot."""

    units: int = 1  # of one kind
    _own = 2

    @property
    def sold(self) -> bool:
        """Whether it is."""

    def clear(
        self,
        bids,  # float [n]: *sealed* bids
        reserve=(0.0,
                 1.0),  # two prices
    ) -> list[float]:  # prices
        """Sell it; <nothing> below `reserve[0]`, or $1."""

    @staticmethod
    def empty(like: "Lot", /, *, units: int = 2): ...  # units of it
'''


# From the source


def lines_of(name, inside="Lot"):
    tree = ast.parse(EXAMPLE)
    node = site.definitions(site.definitions(tree)[inside])[name] if inside else site.definitions(tree)[name]
    return site.described(name, node, site.remarks(EXAMPLE), bool(inside)).splitlines()


def test_a_method_has_its_signature_its_sentence_and_the_comments_beside_parameters():
    assert [line for line in lines_of("clear")[:-1] if line] == [
        "`````````{py:method} clear(bids, reserve=(0.0, 1.0)) -> list[float]",
        r"Sell it; \<nothing> below `reserve[0]`, or \$1.",
        r":param bids: float \[n]: \*sealed\* bids", ":param reserve: two prices", ":returns: prices"]


def test_fields_properties_static_methods_and_constants_are_told_apart():
    assert lines_of("units")[:5] == ["`````````{py:attribute} units", ":type: int", ":value: 1", "", "of one kind"]
    assert lines_of("sold")[:2] == ["`````````{py:property} sold", ":type: bool"]
    assert lines_of("empty")[:2] == ["`````````{py:method} empty(like: 'Lot', /, *, units: int=2)", ":staticmethod:"]
    assert lines_of("LIMIT", None)[:4] == ["`````````{py:data} LIMIT", ":value: 3", "", "of bids"]
    page = "\n".join(lines_of("Lot", None))
    assert "_own" not in page and page.count("{py:") == 5


@pytest.mark.parametrize("text, shown", [
    ("Call `dd.simulate`.", "Call {py:obj}`dd.simulate <daedalus.market.engine.simulate>`."),
    ("Call `simulate(x)` or `nothing_of_ours`.", None), ("```\n`simulate`\n```", None), ("[`simulate`](15_engine.ipynb)", None),
    ("``simulate``", None)])
def test_names_of_the_library_become_links_and_nothing_else_does(text, shown):
    assert site.linked(text, site.name_links(MODULES)) == (shown or text)


def test_a_name_of_two_modules_leads_where_the_package_has_it_from():
    links = site.name_links(MODULES)
    both = [module for module, names in MODULES.items() if "simulate" in names]
    assert len(both) > 1 and links["simulate"] == "daedalus.market.engine.simulate"
    for name in ("Mechanism", "Population", "evaluate", "LanguageDesigner", "recommend"): assert name in links


def test_a_module_that_exports_nothing_has_no_page_and_all_others_have_one(tmp_path):
    site.write_sources(tmp_path)
    assert {path.stem for path in (tmp_path / "api").glob("*.md")} == {*MODULES, "daedalus"}
    assert {path.name for path in (tmp_path / "nbs").glob("*.ipynb")} == {path.name for path in notebooks()} - {"index.ipynb"}
    page, old = tmp_path / "api" / "schema.md", paths.write_text(tmp_path / "nbs" / "99_gone.ipynb", "{}")
    before = page.stat().st_mtime_ns
    site.write_sources(tmp_path)
    assert page.stat().st_mtime_ns == before and not old.exists()


def test_a_notebook_that_the_front_page_lacks_is_named(monkeypatch):
    monkeypatch.setattr(site, "notebooks", lambda: [*notebooks(), Path("99_more.ipynb")])
    with pytest.raises(ValueError, match="the table of notebooks in nbs/index.ipynb lacks 99_more"):
        site.rooms()


# Notebooks as committed


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_every_figure_of_a_notebook_is_told_in_words(path):
    assert all(len(words) > len("Figure. ") for words in site.alternatives(path).values())


def test_a_figure_without_words_is_named(tmp_path):
    bare = {"output_type": "display_data", "data": {"image/png": "aGVsbG8="}, "metadata": {}}
    path = paths.write_text(tmp_path / "a.ipynb", json.dumps({"cells": [{"id": "plot", "cell_type": "code", "outputs": [bare]}]}))
    with pytest.raises(ValueError, match="a.ipynb, cell 'plot' shows a figure without an alternative text"):
        site.alternatives(path)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_every_notebook_imports_the_library_which_refuses_parameters_that_it_does_not_have(path):
    names = {alias.name if isinstance(node, ast.Import) else node.module or "" for node in ast.walk(ast.parse(notebook_code(path)))
             if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    assert any(name.partition(".")[0] == "daedalus" for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["05_seeds", "14_rewards"])
def test_papermill_refuses_an_unknown_parameter_of_a_committed_notebook(name, tmp_path):
    pytest.importorskip("papermill", reason="papermill is not installed")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DAEDALUS_")}
    done = subprocess.run([sys.executable, "-m", "papermill", f"nbs/{name}.ipynb", tmp_path / "out.ipynb", "-p", "whatever", "1"],
                          cwd=paths.CHECKOUT, env=environment | {"PYTHONPATH": str(paths.CHECKOUT)}, capture_output=True, text=True)
    assert done.returncode == 1 and "ValueError: this notebook has no parameter 'whatever': its parameters are seed" in done.stderr


# The site


def needs_sphinx():
    for name in ("sphinx", "myst_nb", "furo", "latex2mathml"): pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Builds a site of one page, of this text."""
    needs_sphinx()

    def build(text):
        monkeypatch.setattr(site, "write_sources", lambda folder: (
            paths.write_text(folder / "index.md", text),
            shutil.copytree(paths.data_dir() / "pages", folder / "data" / "pages", dirs_exist_ok=True)))
        monkeypatch.setattr(site, "notebooks", list)
        return site.build_site(tmp_path / "site", tmp_path / "work", jobs=1).read_text(encoding="utf-8")

    return build


def test_a_formula_is_written_as_mathml(small):
    page = small("# Title\n\nAs $x^2$, and\n\n$$\\frac{a}{b}$$\n")
    assert page.count("<math ") == 2 and "<msup>" in page and "<mfrac>" in page and "cdn" not in page


@pytest.mark.parametrize("text, fault", [
    ("# Title\n\n[there](nowhere.md)\n", "nowhere.md"), ("# Title\n\n[there](#nowhere)\n", "nowhere"),
    ("# Title\n\n![a figure](nowhere.png)\n", "nowhere.png")])
def test_a_link_that_leads_nowhere_is_a_fault(small, text, fault):
    with pytest.raises(ValueError, match=rf"the documentation has faults:\n(.|\n)*{fault}"):
        small(text)


def test_without_sphinx_one_reads_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sphinx.application", None)
    with pytest.raises(ModuleNotFoundError, match=r"the documentation needs .*: pip install -e '\.\[docs\]'"):
        site.build_site()


class Page(HTMLParser):
    """The links, anchors, images and what is fetched for a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.images, self.fetched = [], set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.anchors |= {known[name] for name in ("id", "name") if known.get(name)}
        if tag == "a" and "href" in known: self.links.append(known["href"])
        if tag == "img": self.images.append(known)
        if tag in ("img", "script", "iframe", "source", "video", "embed") and known.get("src"): self.fetched.append(known["src"])
        if tag == "object" and known.get("data"): self.fetched.append(known["data"])
        if tag == "link" and known.get("rel") not in ("canonical", "next", "prev", "index", "search"): self.fetched.append(known.get("href"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the whole site, built once, and its pages."""
    needs_sphinx()
    folder = tmp_path_factory.mktemp("site")
    site.build_site(folder / "site", folder / "work")
    return folder / "site", {path: Page(path) for path in (folder / "site").rglob("*.html")}


@pytest.mark.slow
def test_there_is_a_page_of_each_notebook_and_an_anchor_of_each_name(built):
    folder, pages = built
    assert {path.stem for path in folder.glob("nbs/*.html")} == {path.stem for path in notebooks()} - {"index"}
    for module, names in MODULES.items():
        anchors = pages[folder / "api" / f"{module}.html"].anchors
        assert {f"daedalus.{module}.{name}" for name in names} <= anchors
    assert "genindex.html" in {path.name for path in pages} and "search.html" in {path.name for path in pages}


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_page_and_to_an_anchor_on_it(built):
    folder, pages = built
    wrong, inside = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside += 1
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target.suffix == ".html" and anchor not in pages[target].anchors):
                wrong.append((path.relative_to(folder).as_posix(), link))
    assert wrong == [] and inside > 10_000


@pytest.mark.slow
def test_nothing_that_a_page_needs_is_elsewhere(built):
    folder, pages = built
    for path, page in pages.items():
        assert [address for address in page.fetched if urlsplit(address).netloc] == [], path
    for path in folder.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(\s*['\"]?|@import\s+['\"])(https?:)?//", text), path


@pytest.mark.slow
def test_every_image_of_the_site_is_told_in_words(built):
    images = [image for page in built[1].values() for image in page.images]
    assert len(images) > 100
    assert [image["src"] for image in images if len(image.get("alt", "").split()) < 3] == []


@pytest.mark.slow
def test_the_site_is_read_from_a_folder_on_a_phone_and_on_a_screen(built):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not (chromium := shutil.which("chromium")): pytest.skip("chromium is not installed")
    folder, asked, faults = built[0], [], []
    with sync.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: faults.append(str(error)))
            for name in ("index", "nbs/42_evaluate", "nbs/70_theory", "api/schema", "api/market.engine"):
                page.goto((folder / f"{name}.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            page.goto((folder / "search.html").as_uri() + "?q=simulate")
            page.wait_for_selector("#search-results li a")
            shown = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.getAttribute('href'))")
            assert any("api/market.engine.html#daedalus.market.engine.simulate" in link for link in shown)
        browser.close()
    assert faults == [] and [address for address in asked if not address.startswith(("file:", "data:"))] == []


def test_make_sets_up_what_the_site_needs():
    text = (paths.CHECKOUT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^docs: \$\(READS\) ## ", text, re.MULTILINE) and ".venv/.reads: EXTRAS := docs\n" in text
    assert NOTEBOOKS.is_dir() and "build/" in (paths.CHECKOUT / ".gitignore").read_text().split()


def test_what_an_output_shows_of_another_page_is_no_link_to_a_file_beside_it():
    page = "<a href='a.json'>a</a> <a class=\"b\" href=\"b.csv\">b</a> <a href='https://c.d'>c</a> <a href=\"#e\">e</a>"
    shown = site._shown({"data": {"text/html": [page], "text/plain": "x"}})["data"]
    assert shown == {"text/html": "<a>a</a> <a class=\"b\">b</a> <a href='https://c.d'>c</a> <a href=\"#e\">e</a>", "text/plain": "x"}
    assert site._shown({"output_type": "stream", "text": page}) == {"output_type": "stream", "text": page}
