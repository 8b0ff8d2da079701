"""Build the site from the Markdown of the repository: make docs, or .venv-docs/bin/python docs/site.py

Pages and the files that they link to are copied with their paths, so links are those of the repository. Formulas become
MathML, which needs no script. The API pages are made from the docstrings.
"""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "site"
NAV = {
    "Start": "docs/install.md docs/options.md docs/your_data.md docs/python.md",
    "Tasks": "docs/superglue.md docs/encoders.md docs/intermediate.md docs/masked_lm.md docs/generation.md",
    "Compare": "docs/recommend.md docs/sweeps.md docs/inspect.md docs/mirrored.md",
    "Results": "results/README.md results/PROTOCOL.md",
    "Use": "docs/export.md docs/serving.md",
    "Run": "docs/cluster.md docs/speed.md docs/reliability.md docs/bad_input.md",
    "Develop": "CONTRIBUTING.md docs/architecture.md CHANGELOG.md",
}
"""Heading -> its pages; a page that is not here comes last in Start."""
API = {
    "From Python": "notebook training options loading saving merging",
    "Methods and places": "methods places encoders prepending sequences",
    "Tasks and data": "tasks task_data classification masked_lm metrics tokens",
    "Study": "study.search study.space study.aggregation study.significance study.recipes study.inspection",
}
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$", re.DOTALL)


def main() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    methods = sorted(path.parent.name for path in ROOT.glob("*/method.py"))
    own = [ROOT / name / "README.md" for name in methods]
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), *own, *(ROOT / "results").glob("*.md")]
    for page in pages:
        copy(page)
    listed = " ".join(NAV.values()).split()
    NAV["Start"] += "".join(f" docs/{page.name}" for page in pages if page.parent.name == "docs"
                            and f"docs/{page.name}" not in listed)  # fmt: skip
    nav = {heading: words.split() for heading, words in NAV.items()}
    nav |= {"Methods": [f"{name}/README.md" for name in methods], "API": write_api(methods)}
    parts = [f"{{{toml(heading)} = [{', '.join(map(toml, each))}]}}" for heading, each in nav.items()]
    text = CONFIG.format(nav=", ".join(['{"Home" = "README.md"}', *parts]), root=toml(str(ROOT)))
    (BUILD / "zensical.toml").write_text(text)
    program = Path(sys.executable).with_name("zensical")
    subprocess.run([program, "build", "--strict"], cwd=BUILD, check=True)
    print(BUILD / "html" / "index.html")


def copy(page: Path) -> None:
    """Copy a page with its formulas as MathML, and the files that it links to."""
    text, out = page.read_text(encoding="utf-8"), BUILD / "pages" / page.relative_to(ROOT)
    out.parent.mkdir(parents=True, exist_ok=True)
    for link in re.findall(r'\]\(([^)#: ]+)|src="([^":]+)"', text):
        file = (page.parent / (link[0] or link[1])).resolve()
        if file.is_file() and file.suffix != ".md" and file.is_relative_to(ROOT):
            target = BUILD / "pages" / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    parts = CODE.split(text)
    out.write_text("".join(part if number % 2 else FORMULA.sub(mathml, part) for number, part in enumerate(parts)))


def mathml(found: re.Match[str]) -> str:
    """A formula as MathML, in which a | must not end the cell of a table."""
    block, inline = found.groups()
    text = convert(html.unescape(block or inline), display="block" if block else "inline")
    return text.replace("|", "&#x7C;").replace("\n", "")


def write_api(methods: list[str]) -> list[str]:
    """Write the pages of the API; return their paths."""
    groups = {heading: [f"common.{name}" for name in words.split()] for heading, words in API.items()}
    groups["The methods"] = [f"{name}.method" for name in methods]
    paths = []
    for heading, modules in groups.items():
        paths.append(f"api/{heading.lower().replace(' ', '_')}.md")
        path = BUILD / "pages" / paths[-1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {heading}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n")
    return paths


def toml(text: str) -> str:
    return f'"{text}"'


CONFIG = """[project]
site_name = "Parameter-efficient fine-tuning"
docs_dir = "pages"
site_dir = "html"
nav = [{nav}]
[project.theme]
font = false
[project.plugins.mkdocstrings.handlers.python]
paths = [{root}]
[project.plugins.mkdocstrings.handlers.python.options]
docstring_style = "google"
show_source = false
show_root_heading = true
members_order = "source"
"""

if __name__ == "__main__":
    main()
