"""The book's configuration; `python -m sphinx -W -n -j 6 docs docs/_build/html` builds it."""

import os
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import minitorch  # noqa: E402

project = "minitorch"
author = "The minitorch authors"
project_copyright = "%Y, The minitorch authors"
version = release = minitorch.__version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "mathml",
    "project_source",
    "catalogue",
    "inline_svg",
    "notebooks",
    "offline",
]
exclude_patterns = ["_build", "README.md"]
nitpicky = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
math_number_all = False
math_eqref_format = "({number})"

# Chapters are executed afresh at every build, since what they show is the engine of this checkout.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_execution_show_tb = True
nb_merge_streams = True
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
copybutton_selector = "div.cell_input pre, div.highlight-console pre"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "minitorch, the book"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#8a3b12",
        "color-brand-content": "#9a3f10",
        "color-brand-visited": "#7d4a68",
        "color-background-primary": "#fffdfa",
        "color-background-secondary": "#f8f4ed",
        "color-background-border": "#e9e1d5",
    },
    "dark_css_variables": {
        "color-brand-primary": "#f0a271",
        "color-brand-content": "#f0a271",
        "color-brand-visited": "#d3a3c0",
        "color-background-primary": "#16171a",
        "color-background-secondary": "#1c1e22",
        "color-background-border": "#303339",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def _kernel_profile() -> str:
    """A profile for the kernels that run the chapters: figures as SVG, one thread, no history."""
    home = tempfile.mkdtemp(prefix="minitorch-book-")
    profile = Path(home) / "profile_default"
    profile.mkdir()
    (profile / "ipython_kernel_config.py").write_text(
        "c = get_config()\n"
        "c.InlineBackend.figure_formats = {'svg'}\n"
        "c.InlineBackend.rc = {}\n"
        "c.InlineBackend.print_figure_kwargs = {'bbox_inches': 'tight'}\n"
        "c.HistoryManager.enabled = False\n"
        "c.IPKernelApp.log_level = 'ERROR'\n",
        encoding="utf-8",
    )
    return home


os.environ["IPYTHONDIR"] = _kernel_profile()
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(DOCS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
