from .depth import centre_of_mass as centre_of_mass
from .depth import critical_by_task as critical_by_task
from .depth import critical_overlap as critical_overlap
from .depth import loss_by_third as loss_by_third
from .depth import rank_agreement as rank_agreement
