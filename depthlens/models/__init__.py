"""Models: from a name, a folder or a module to a `Lens`."""

import logging

# torchao reports kernels of other devices and deprecations of torch, accelerate that an offloaded model is one
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes", "accelerate.big_modeling"):
    logging.getLogger(_name).setLevel(logging.ERROR)
