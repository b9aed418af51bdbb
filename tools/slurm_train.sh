#!/bin/bash
# Train under SLURM, one process a GPU, and go on by itself when time is up or a node is taken away:
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 8 --time 24:00:00 \
#       tools/slurm_train.sh CONFIG [arguments of tools/train.py]
#
# Two minutes before the time is up SLURM sends SIGTERM to the training, which saves and exits with
# status 75; the job is then queued again, and resumes. --work-dir must be on storage that all nodes see.
#SBATCH --job-name fastvit_dense
#SBATCH --signal TERM@120
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --output slurm-%j.log
set -u
if [ $# -lt 1 ]; then
  echo "usage: sbatch [options] tools/slurm_train.sh CONFIG [arguments of tools/train.py]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)}"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
export OMP_WAIT_POLICY=PASSIVE
# A lost rank ends the others, instead of leaving them waiting for it.
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" tools/train.py "$@" --launcher slurm --resume
status=$?
if [ $status -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
