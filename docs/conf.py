"""The site of the documentation: `make docs`. Its source is the whole repository, so that links work as on GitHub."""

import vamcei_jax

project = "vamcei_jax"
author = "The vamcei_jax authors"
version = release = vamcei_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/results/*.md", "weights/*/README.md"]
exclude_patterns = [".*", "build", "dist", "runs", "site"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # the anchors of GitHub

autodoc_typehints = "none"  # the docstrings name the types
autodoc_member_order = "bysource"
napoleon_custom_sections = None

html_theme = "furo"
html_title = "vamcei_jax"
html_copy_source = False
html_show_sphinx = False
