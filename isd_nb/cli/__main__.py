"""`python -m isd_nb.cli` is `isd_train`: what torchrun, accelerate and companion processes start."""
from .train import isd_train

if __name__ == "__main__":
    isd_train()
