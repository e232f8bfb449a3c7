"""Configuration of the site that `make docs` builds.

The source is the whole repository, so that links between its pages and to its files work as they do on GitHub.
"""

import vamcei_jax

project = "vamcei_jax"
author = "The vamcei_jax authors"
version = release = vamcei_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
  "docs/*.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "experiments/results/notes.md",
  "weights/*/README.md",
  "weights/*/TRAINING.md",
]
exclude_patterns = [".*", "build", "dist", "runs", "site"]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3  # the anchors that GitHub gives to headings

autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}  # functions make the objects
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "vamcei_jax"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
