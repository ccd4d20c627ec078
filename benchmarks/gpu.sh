#!/usr/bin/env bash
# Proves swapfast on a GPU machine that has torch and no network.
#
#   bash benchmarks/gpu.sh unpack       DALI from .device (a bundle in pieces) to $SITE, and what is in .whl beside it
#   bash benchmarks/gpu.sh tests        the suite with tensors on the GPU, the checks of tests/pipelines/test_gpu.py first
#   bash benchmarks/gpu.sh benchmarks   everything that is measured, as JSON
#
# $OUT: folder for the results, default gpu-results. $SITE: default /tmp/swapfast-site. $SWAPFAST_GOLDEN: faceswap's
# numbers. A part that fails or takes too long does not keep the next from running; the exit code tells of it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results}
site=${SITE:-/tmp/swapfast-site}
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" DALI_NVIMGCODEC_LOG_LEVEL=${DALI_NVIMGCODEC_LOG_LEVEL:-2}
mkdir -p "$out" "$site"
failed=0

part() { # part SECONDS NAME COMMAND...
    local seconds=$1 name=$2
    shift 2
    echo "== $name"
    timeout --signal=INT --kill-after=20 "$seconds" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    tail -n 15 "$out/$name.txt"
    if ((code)); then
        echo "== $name: exit code $code"
        failed=1
    fi
}

for step in "${@:-tests}"; do
    case $step in
    unpack)
        cat .device/*.tar.xz.* | tar xJ -C "$site" || failed=1
        if compgen -G ".whl/*.whl" >/dev/null; then
            python3 -m pip install --no-index --no-deps --target "$site" .whl/*.whl || failed=1
        fi
        ;;
    tests)
        part 120 checks python3 -m pytest -q -rA --device cuda tests/pipelines/test_gpu.py
        part 400 tests python3 -m pytest -q --device cuda
        ;;
    benchmarks)
        part 200 augment python3 -m benchmarks.augment --json "$out/augment.json" --sizes 256 64 128 512 \
            --backends opencv kornia_gpu
        part 130 loader python3 -m benchmarks.loader --cold-faces 256 --json "$out/loader.json"
        part 70 decode python3 -m benchmarks.decode --json "$out/decode.json"
        part 90 losses python3 -m benchmarks.losses --json "$out/losses.json"
        part 90 optimizers python3 -m benchmarks.optimizers --json "$out/optimizers.json"
        ;;
    *)
        echo "gpu.sh: unknown step '$step'; give unpack, tests or benchmarks" >&2
        exit 2
        ;;
    esac
done
exit $failed
