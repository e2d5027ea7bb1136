from .figure import figure_of, save_figure
from .kinds import facts, picture, summary
from .page import save_page
from .panels import Picture
from .terminal import Shown, in_terminal

__all__ = ["Picture", "Shown", "facts", "figure_of", "in_terminal", "picture", "save_figure", "save_page", "summary"]
