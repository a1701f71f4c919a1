from .needles import task_needles as task_needles
from .needles import written_needles as written_needles
