#!/bin/bash
# One run on several nodes, with one process for each GPU. Submit it in the root of the repository:
#
#   DATA=DIR sbatch examples/slurm/several_nodes.sh [ARGUMENTS OF vamcei_jax.main]
#
# All nodes must share this folder and the folder of prepared data (config.data.prepared_dir). The same command resumes
# the run, also on another number of nodes.
#SBATCH --job-name=vamcei-nodes
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=4
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu

# --multihost: jax.distributed finds the processes in SLURM's variables. On a node, process number I uses GPU number I,
# so every process must see all GPUs of its node: --gres (for each node), not --gpus-per-task.
# The size of a batch must be a multiple of the number of all GPUs.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  .venv/bin/python -m vamcei_jax.main --config="${CONFIG:-configs/vamcei_paper.py}" \
  --config.data.root="${DATA:?give the folder of the volumes: DATA=DIR sbatch ...}" \
  --config.train.batch_size=8 --workdir="runs/$SLURM_JOB_NAME" --multihost "$@"
