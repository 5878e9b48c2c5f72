"""The page of the report: one file that needs nothing else, whatever the names in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_parts import Parts, content, parts
from tab_logs import HOSTILE

from cam_callbacks.review import schema
from cam_callbacks.review.report import write_report
from cam_callbacks.review.report_page import bundled, page


def test_names_are_escaped(two_runs: Path, tmp_path: Path) -> None:
    (two_runs / "two").rename(two_runs / "<b>&bold")
    path = tmp_path / "report.html"
    write_report([two_runs], path)
    text = path.read_text(encoding="utf-8")
    assert HOSTILE in json.dumps(content(path))
    assert HOSTILE not in text
    assert "<b>" not in text
    assert not {"img", "b"} & set(parts(path).tags)


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", "{title}", "\u2028"])
def test_no_text_ends_the_data(name: str) -> None:
    runs = [{"timeline": {"run": name, "monitor": "cam", "looks": []}, "looks": {}, "swaps": {}}]
    found = Parts(page({"runs": runs, "skipped": []}))
    assert found.tags.count("script") == 2
    assert json.loads(found.scripts["application/json"])["runs"] == runs


def test_it_needs_no_other_file_and_no_other_host(two_runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report([two_runs], path)
    text = path.read_text(encoding="utf-8")
    assert parts(path).places == []
    namespaces = {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"""\bhttps?://[^\s'"`)]+""", text)) <= namespaces
    assert not re.search(r"@import|url\((?!['\"]?data:)", parts(path).scripts["style"])
    assert not re.search(r"^\s*import\s|\bimport\(|\bfrom '", parts(path).scripts["module"], re.MULTILINE)
    assert "default-src 'none'" in text


def test_the_view_of_the_tab_is_in_it(two_runs: Path, tmp_path: Path) -> None:
    write_report([two_runs], tmp_path / "report.html")
    assert "new EmbeddedSource(" in parts(tmp_path / "report.html").scripts["module"]
    assert "class EmbeddedSource" in parts(tmp_path / "report.html").scripts["module"]


def test_the_modules_of_the_page_are_one_in_the_report(two_runs: Path, tmp_path: Path) -> None:
    write_report([two_runs], tmp_path / "report.html")
    script = parts(tmp_path / "report.html").scripts["module"]
    for module in (Path(schema.__file__).parent / "page").glob("*.js"):
        first = module.read_text(encoding="utf-8").split("\n", 1)[0]
        assert script.count(first) == (module.name != "index.js"), module.name


def test_a_module_comes_once_and_after_those_that_it_imports() -> None:
    sources = {
        "a.js": "import { b } from './b.js';\nimport {\n  c as other,\n} from './c.js';\n",
        "b.js": "import { c } from './c.js';\nexport const b = c;\nconst own = 1;\n",
        "c.js": "const own = 2;\nexport async function c() {}\n",
    }
    script = bundled("a.js", sources)
    assert re.findall(r"^modules\['(.*)'\]", script, re.MULTILINE) == ["c.js", "b.js", "a.js"]
    assert "const { c } = modules['c.js'];" in script
    assert re.search(r"const \{\s*c: other,\s*\} = modules\['c.js'\];", script)
    assert re.findall(r"^return .*", script, re.MULTILINE) == ["return { c };", "return { b };", "return {  };"]


@pytest.mark.parametrize(
    "line",
    ["export default 3;", "export { b };", "import './b.js';", "import * as b from './b.js';", "export let b = 1;"],
)
def test_a_module_that_the_report_cannot_join_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"^a\.js: .*is not understood"):
        bundled("a.js", {"a.js": f"{line}\n", "b.js": "export const b = 1;\n"})


def test_modules_that_import_each_other_are_refused() -> None:
    sources = {"a.js": "import { b } from './b.js';\n", "b.js": "import { a } from './a.js';\n"}
    with pytest.raises(ValueError, match=r"circle: a\.js -> b\.js -> a\.js"):
        bundled("a.js", sources)
