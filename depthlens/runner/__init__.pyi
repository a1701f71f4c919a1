from .compare_page import write_comparison as write_comparison
from .execute import run as run
from .pages import gallery as gallery
