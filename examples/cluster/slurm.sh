#!/bin/bash
# A training over several machines under Slurm:
#
#     sbatch --nodes 4 examples/cluster/slurm.sh recipe.yaml
#
# One task a machine: torchrun starts a process for each of its GPUs. Ten minutes before the
# time is up Slurm tells this script, which tells the processes (SIGTERM): they finish their
# step and save a checkpoint. The job then goes back into the queue, and goes on from there. So
# it does when somebody with more priority takes the machines, where the cluster requeues.

#SBATCH --job-name=prefopt
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -uo pipefail

RECIPE=${1:?usage: sbatch slurm.sh recipe.yaml}
GPUS=${SLURM_GPUS_ON_NODE:-8}

# Where the processes meet: the first machine of the job, at a port that depends on the job.
MEET=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))

# How many seconds torchrun lets its processes save before it kills them.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540
# Cores for each process; without it torchrun sets 1 and says so.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-64} / GPUS))}

# In the background: a shell hears of a signal only while it waits.
srun --kill-on-bad-exit=1 \
    torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$GPUS" --max-restarts=1 \
    --rdzv-backend=c10d --rdzv-endpoint="$MEET" --rdzv-id="$SLURM_JOB_ID" \
    -m prefopt train "$RECIPE" &
STEP=$!

STOPPED=
trap 'STOPPED=yes; kill -TERM "$STEP"' TERM
while
    wait "$STEP"
    CODE=$?
    kill -0 "$STEP" 2>/dev/null # the signal ended the waiting, not the step, which still saves
do :; done

if [[ -n $STOPPED && $CODE -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$CODE"
