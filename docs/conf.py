"""The documentation site: `make docs` (tutorials are run), `make docs QUICK=1` (they are shown as they are)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
# For the kernels that run tutorials, too.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm would like widgets

from align_transformers._version import library_version  # noqa: E402

project = "align-transformers"
author = "the authors of align-transformers"
project_copyright = author
version = release = library_version()

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "site_parts",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".py": "myst-nb"}
nb_custom_formats = {".py": "site_parts.read_tutorial"}
include_patterns = ["*.md", "howto/*.md", "concepts/*.md", "reference/**", "tutorials/*.py"]
exclude_patterns = ["tutorials/_*.py"]
templates_path = ["_templates"]

# --- tutorials --------------------------------------------------------------------------------------------------------

nb_execution_mode = "off" if os.environ.get("DOCS_QUICK") else "cache"
nb_execution_cache_path = str(HERE.parent / "out" / "docs" / "cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # scripts from another host

# --- prose ------------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# --- reference --------------------------------------------------------------------------------------------------------

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "py:obj"  # `grid` in a docstring is a link where there is such a page
add_module_names = False
nitpick_ignore_regex = [
    ("py:obj", r"(?s).*"),  # code between single backticks
    ("py:class", r"(abc|collections|torch|transformers|align_transformers)\..*"),  # base classes without a page
]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# --- pages ------------------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "align-transformers"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_context = {"default_mode": "auto"}
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"index": [], "errors": [], "tutorials": [], "benchmarks": []}
html_theme_options = {
    "header_links_before_dropdown": 8,
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": {"**": ["page-toc"], "architectures": []},
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
