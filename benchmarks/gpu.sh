#!/usr/bin/env bash
# Proves and measures swapfast on a machine with a GPU that has torch, and may have no network and not much else.
#
#   bash benchmarks/gpu.sh first     what matters most, in under ten minutes: see `list`
#   bash benchmarks/gpu.sh second    the other benchmarks, in as much again
#   bash benchmarks/gpu.sh NAME...   single parts, in this order
#   bash benchmarks/gpu.sh list      step, name and limit in seconds of every part
#
# Each part has a limit of its own, writes as it goes, and keeps no other from running. A part that needs a GPU says
# "no GPU" where there is none. Exit code: 0; 1 where a part failed or ran out of time; 3 where all that is wrong is that
# there is no GPU.
#
# $OUT: folder for logs and results, default gpu-results. $BUNDLE: folder with packages that the machine lacks, default
# .device; $SITE: where they are unpacked, default /tmp/swapfast-site. $SWAPFAST_GOLDEN: faceswap's numbers.
# $SWAPFAST_COMMIT: the commit, for results, where the files come without git. $PYTHON: default python3.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results}
site=${SITE:-/tmp/swapfast-site}
bundle=${BUNDLE:-.device}
python=${PYTHON:-python3}
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" DALI_NVIMGCODEC_LOG_LEVEL=${DALI_NVIMGCODEC_LOG_LEVEL:-2}
export PYTHONUNBUFFERED=1
no_gpu=3    # exit code, as of benchmarks.common
grace=3     # seconds, of its limit, that a part has left when it is told to end

# Sums of the limits: under 560 s, so that ten minutes suffice.
first=(facts:7 unpack:30 first_minutes:90 train:145 profile:40 checks:55 tests:150 mixed:40)
second=(facts:7 unpack:30 augment:190 loader:110 decode:60 losses:75 optimizers:75)
needs_gpu=" train profile checks tests mixed augment loader decode losses optimizers "

command_of() { # sets the array `command` to what a part runs
    local checks=(tests/pipelines/test_gpu.py tests/augment/test_fused.py tests/training/test_graphed.py)
    case $1 in
    facts) command=("$python" benchmarks/facts.py) ;;
    unpack) command=("$python" benchmarks/unpack.py "$bundle" "$site") ;;
    first_minutes) command=("$python" -m benchmarks.first_minutes --json "$out/first_minutes.json") ;;
    train)
        command=("$python" -m benchmarks.train --json "$out/train.json" --device cuda --models original
            --batch 16 64 256 --rows parts live graphed compiled --block 0.2 --pairs 7)
        ;;
    profile)
        command=("$python" -m benchmarks.step_profile --json "$out/profile.json" --traces "$out/traces" --device cuda)
        ;;
    checks) command=("$python" -m pytest -v --device cuda $(processes 4) "${checks[@]}") ;;
    tests) command=("$python" -m pytest -v --device cuda $(processes 12)) ;;
    mixed) command=("$python" -m benchmarks.mixed --json "$out/mixed.json") ;;
    augment)
        command=("$python" -m benchmarks.augment --json "$out/augment.json" --sizes 256 64 128 512
            --steps whole to_device whole_landmarks --backends opencv kornia:cuda triton dali_affine --peer-up-to 256)
        ;;
    loader) command=("$python" -m benchmarks.loader --cold-faces 256 --json "$out/loader.json") ;;
    decode) command=("$python" -m benchmarks.decode --json "$out/decode.json") ;;
    losses) command=("$python" -m benchmarks.losses --json "$out/losses.json") ;;
    optimizers) command=("$python" -m benchmarks.optimizers --json "$out/optimizers.json") ;;
    esac
}

processes() { # pytest's flags for COUNT processes, none where it cannot
    if "$python" -c 'import xdist' 2>/dev/null; then
        echo "-n $1 --dist worksteal"
    fi
}

gpu_missing() { # says why, once per call of this script
    if [[ -z ${gpu_answer+set} ]]; then
        gpu_answer=$("$python" -c '
try:
    import torch
    print("" if torch.cuda.is_available() else "no GPU")
except ImportError as error:
    print(f"no GPU ({error})")' 2>/dev/null | tail -n 1)
    fi
    [[ -n $gpu_answer ]]
}

failed=0
part() { # part NAME SECONDS
    local name=$1 seconds=$2 code=0 command=() begun=$SECONDS
    echo "== $name"
    if [[ $name != facts && $name != unpack ]] && gpu_missing; then
        if [[ $needs_gpu == *" $name "* || $gpu_answer == *"("* ]]; then
            echo "$gpu_answer" | tee "$out/$name.txt"
            code=$no_gpu
        fi
    fi
    if ((code == 0)); then
        command_of "$name"
        timeout --signal=INT --kill-after=$grace $((seconds - grace)) "${command[@]}" >"$out/$name.txt" 2>&1
        code=$?
        tail -n "$([[ $name == facts ]] && echo 40 || echo 15)" "$out/$name.txt"
    fi
    local ending="exit code $code"
    ((code == 124 || code == 137)) && ending="out of time"
    echo "== $name: $ending after $((SECONDS - begun)) of $seconds s"
    if ((code == no_gpu)); then
        ((failed)) || failed=$no_gpu
    elif ((code)); then
        failed=1
    fi
}

all=()
for given in "${@:-first}"; do
    case $given in
    first) all+=("${first[@]}") ;;
    second) all+=("${second[@]}") ;;
    list)
        for entry in "${first[@]}"; do echo "first ${entry/:/ }"; done
        for entry in "${second[@]}"; do echo "second ${entry/:/ }"; done
        exit 0
        ;;
    *)
        known=0
        for entry in "${first[@]}" "${second[@]}"; do
            if [[ ${entry%:*} == "$given" && $known == 0 ]]; then
                all+=("$entry")
                known=1
            fi
        done
        if ((known == 0)); then
            echo "gpu.sh: unknown part '$given'; give first, second or a name that \`gpu.sh list\` prints" >&2
            exit 2
        fi
        ;;
    esac
done
mkdir -p "$out" "$site"
for entry in "${all[@]}"; do
    part "${entry%:*}" "${entry#*:}"
done
exit "$failed"
