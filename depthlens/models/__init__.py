"""Models: from a name, a folder or a module to a `Lens`."""

import logging

# transformers imports torchao where it is installed, which reports kernels of other devices and torch's deprecations
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)
