#!/bin/bash
# Train on several machines, without a scheduler: run this on each of them.
#   MAIN=node0 RANK=0 NODES=2 GPUS=8 scripts/train_nodes.sh --recipe imagenet_r50 --out runs/imagenet_r50 --resume
# MAIN: name of the first machine; RANK: number of this one, from 0; NODES: how many; GPUS: in each (0: one process on
# the CPU); PORT: free on MAIN. All arguments go to isd_train. --out must lie where all machines can read it, because
# all of them resume from it; the first one writes.
set -eu
: "${MAIN:=127.0.0.1}" "${RANK:=0}" "${NODES:=1}" "${GPUS:=8}" "${PORT:=29500}"
processes=$GPUS
[ "$processes" -ge 1 ] || processes=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Seconds in which processes that are stopped may finish up to 20 steps and save, before torchrun kills them; versions of
# PyTorch that do not know this variable wait for 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}"
node=$RANK
unset RANK  # torchrun sets its own
exec python -m torch.distributed.run --nnodes="$NODES" --node_rank="$node" --nproc_per_node="$processes" \
    --master_addr="$MAIN" --master_port="$PORT" -m isd_nb.cli "$@"
