#!/bin/sh
# Opens the page of a run on another machine: examples/cloud/watch.sh HOST [MODEL] [PORT]
# HOST: as ssh knows it. A cluster of SkyPilot has its own name; with Slurm take the login node, whose page cannot
# send signals to the node of the job. MODEL: the folder there, such as sky_workdir/model.
# Open the address that is printed in a browser here. Ctrl-C ends the page, not the run.
set -eu
host=${1:?give the host, as ssh knows it}
model=${2:-model}
port=${3:-8420}
exec ssh -t -L "$port:127.0.0.1:$port" "$host" "swapfast watch '$model' --port $port"
