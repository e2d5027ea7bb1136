from .figure import figure_of, image_of, save_figure, save_heat_map
from .kinds import facts, picture, summary
from .page import page_of, page_of_chapters, save_page
from .panels import Picture
from .terminal import ChaptersShown, Shown, heat_map, in_terminal
from .verdicts import verdict

__all__ = [
    "ChaptersShown",
    "Picture",
    "Shown",
    "facts",
    "figure_of",
    "heat_map",
    "image_of",
    "in_terminal",
    "page_of",
    "page_of_chapters",
    "picture",
    "save_figure",
    "save_heat_map",
    "save_page",
    "summary",
    "verdict",
]
