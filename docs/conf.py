"""Configuration of Sphinx, which builds these pages as a site: `make docs`."""

from importlib.metadata import version as installed_version

project = "ocsf-nft"
author = "the maintainers of ocsf-nft"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name
release = version = installed_version("ocsf-nft")
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"{project} {release}"
myst_heading_anchors = 4
nitpicky = True
suppress_warnings = [
    # SPL, and DuckDB's dialect of SQL, are not known to Pygments.
    "misc.highlighting_failure",
    # Pages link files outside docs/, which are no part of the site: tests/docs checks the links.
    "myst.xref_missing",
]
