#!/bin/bash
# Train on all GPUs of this machine, and go on if the run is there:
#   scripts/train_gpus.sh --recipe cifar10 --out runs/cifar10 --resume
set -eu
GPUS=$(python -c 'import torch; print(torch.cuda.device_count())')
export GPUS MAIN=127.0.0.1 NODES=1 RANK=0 PORT="${PORT:-$((20000 + $$ % 20000))}"
exec "$(dirname "$0")/train_nodes.sh" "$@"
