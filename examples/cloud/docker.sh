#!/bin/sh
# Trains in a container on what lies in the working directory: faces/a, faces/b, and the model folder "model".
# The same command goes on after a stop: `docker stop swap` saves first. Further flags of train may follow:
#     examples/cloud/docker.sh -i 300000 -b 32
# Without a GPU: GPUS= examples/cloud/docker.sh. The page: its address is in `docker logs swap`; from elsewhere
# by `ssh -L 8420:127.0.0.1:8420 HOST`.
set -eu

# --init: something has to collect ended processes, for process 1 is swapfast otherwise.
# --stop-timeout: docker kills after 10 s otherwise, too short for a large model on a slow disk.
# --network host: the page listens at 127.0.0.1, which ssh -L reaches.
exec docker run --rm --init --name swap --stop-timeout 120 --network host ${GPUS---gpus all} \
    --user "$(id -u):$(id -g)" --volume "$PWD":/work --workdir /work "${IMAGE:-swapfast}" \
    train -A faces/a -B faces/b -m model -i 200000 --watch 8420 "$@"
