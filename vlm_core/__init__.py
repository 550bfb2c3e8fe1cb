"""Fine-tune, evaluate and compare vision-language models on product categorisation."""

import os

__version__ = "0.2.0"

# OpenMP's threads spin while they wait, and take the cores from all that would run. Here they sleep, unless the user
# chose otherwise. PyTorch asks when it is loaded, which is later: every command, worker and page imports this first.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")
