from .harness import load_tasks as load_tasks
from .harness import prepare as prepare
from .needles import Needle as Needle
from .needles import task_needles as task_needles
from .needles import written_needles as written_needles
