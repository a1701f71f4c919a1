from .execute import run as run
from .finding_pages import write_comparison as write_comparison
