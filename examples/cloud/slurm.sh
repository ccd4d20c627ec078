#!/bin/bash
# Trains as a Slurm job that goes on in a new one until all iterations are done: sbatch examples/cloud/slurm.sh
# Submit it where faces/a and faces/b are. Further flags of train may follow: sbatch examples/cloud/slurm.sh -b 32
#SBATCH --job-name=swap
#SBATCH --gpus=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=swap-%j.log
#SBATCH --signal=TERM@180
# Three minutes before the end the run gets SIGTERM, and saves; preemption sends it too.

srun swapfast train -A faces/a -B faces/b -m model -i 200000 "$@"
code=$?
# 3: stopped and saved. 0 is done; 1 (out of memory, disk full) and 2 (a wrong flag) are not mended by another start.
if [ "$code" -eq 3 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
