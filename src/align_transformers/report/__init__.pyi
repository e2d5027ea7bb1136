from .figure import figure_of, image_of, save_figure
from .kinds import facts, picture, summary
from .page import page_of, save_page
from .panels import Picture
from .terminal import Shown, in_terminal

__all__ = [
    "Picture",
    "Shown",
    "facts",
    "figure_of",
    "image_of",
    "in_terminal",
    "page_of",
    "picture",
    "save_figure",
    "save_page",
    "summary",
]
