#!/bin/sh
# Starts the task of sky.yaml as a managed job of SkyPilot: examples/cloud/sky.sh [ITERATIONS]
# The same command with more iterations goes on with the model in the bucket.
set -eu
cd "$(dirname "$0")/../.."
exec sky jobs launch --yes --name swap --env ITERATIONS="${1:-200000}" examples/cloud/sky.yaml
