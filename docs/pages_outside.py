"""What `mkdocs` does beside its own work: pages that stand outside of docs/ belong to the site as well."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = [Path("CONTRIBUTING.md"), *(path.relative_to(ROOT) for path in ROOT.glob("example_projects/**/README.md"))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, at the place they have in the repository."""
    for path in sorted(OUTSIDE):
        files.append(File.generated(config, path.as_posix(), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links between docs/ and the rest of the repository to where the site has the page."""
    if page.file.abs_src_path and not Path(page.file.abs_src_path).is_relative_to(config.docs_dir):
        return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace(f"]({up}../README.md", f"]({up}index.md")
    return re.sub(rf"\]\({re.escape(up)}\.\./(CONTRIBUTING\.md|example_projects/)", rf"]({up}\1", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`Example::` in a docstring is of reStructuredText; here one colon is enough."""
    return html.replace("::</p>", ":</p>")
