"""Casting checkpoints into bundles. Start at `export.py`."""

import logging

# diffusers imports torchao wherever it is installed, and both then warn of GPU kernels and classes that nothing here uses
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)
