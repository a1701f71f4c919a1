from .comparison import activation_deltas as activation_deltas
from .comparison import recovery_curve as recovery_curve
from .heads import head_map as head_map
from .heads import head_overlap as head_overlap
from .layers import depth_profile as depth_profile
from .layers import effect_map as effect_map
from .prompts import prediction as prediction
