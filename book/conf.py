"""Settings of the book's website; `make book` calls `build.py`, which lays out the pages that are read here."""
project = "isd_nb"
author = "The isd_nb authors"
copyright = "2026 onwards, the isd_nb authors"

extensions = ["myst_nb", "sphinx_design"]
exclude_patterns = ["downloads", "extra"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # a page shows the figure that a widget left behind; nothing is loaded from outside
nb_mime_priority_overrides = [("html", "image/png", 0), ("html", "application/vnd.jupyter.widget-view+json", None)]
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "html_image"]
myst_heading_anchors = 4
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"tex": {"inlineMath": [["\\(", "\\)"]]}, "loader": {"load": []}}

html_theme = "pydata_sphinx_theme"
html_title = "isd_nb"
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system has it
html_static_path = ["_static"]
html_extra_path = ["extra"]  # as they are: the explorer, the slides and the archive of handouts
html_css_files = ["book.css"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in (  # pages without others below them
    "explorer", "install", "train_on_your_folder", "use_the_loss", "explore_any_network", "commands",
    "nbs/index", "nbs/notation")}
html_theme_options = {
    "navigation_depth": 2, "show_prev_next": True, "show_toc_level": 2,
    "header_links_before_dropdown": 8, "navbar_align": "left",
    "navbar_end": ["theme-switcher"], "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"], "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light", "pygments_dark_style": "a11y-high-contrast-dark",
}
