#!/usr/bin/env bash
# run.sh test [FILTER..] | bench [NAME ARGS..] | lora ARGS.. | gpu [SHAPE BATCH TOKENS]   over the torch of this machine's python3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
torch=$("${PYTHON:-python3}" -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")')
[ -n "$torch" ] || { echo "error: python3 finds no torch; hint: pip install torch==2.11.0, or set PYTHON" >&2; exit 1; }
version=$(sed -n "s/^__version__ = '\([^']*\)'.*/\1/p" "$torch/version.py")
case $version in 2.11.*) ;; *) echo "error: torch in $torch is $version; this needs 2.11" >&2; exit 1 ;; esac

libraries=$torch/lib
for folder in "$torch"/../nvidia/*/lib; do [ -d "$folder" ] && libraries=$libraries:$folder; done
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# Where tests find their data and the binary, instead of the folders they were compiled in.
export LORA_ROOT=$here INSTA_WORKSPACE_ROOT=$here CARGO_BIN_EXE_lora=$here/bin/lora

verb=${1:-}
[ $# -gt 0 ] && shift
case $verb in
lora) exec "$here/bin/lora" "$@" ;;
test)
    failed=
    while read -r name folder; do
        echo "== $name"
        (cd "$here/$folder" && "$here/tests/$name" "$@" </dev/null) || failed="$failed $name"
    done <"$here/tests.txt"
    [ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }
    echo "all tests passed" ;;
bench)
    only=${1:-}
    [ $# -gt 0 ] && shift
    while read -r name folder; do
        [ -z "$only" ] || [ "$name" = "$only" ] || continue
        echo "== $name"
        (cd "$here/$folder" && "$here/benches/$name" --bench "$@" </dev/null)
    done <"$here/benches.txt" ;;
gpu)
    # The tests on the GPU, then a step of SHAPE with random weights beside the peers, as a table; SHAPE's files go to
    # $LORA_MODELS, a row that fails is told.
    shape=${1:-llama-3-8b} batch=${2:-4} tokens=${3:-2048} models=${LORA_MODELS:-/tmp/lora-models}
    python=${PYTHON:-python3} peers=$here/xtask/peers rows=$(mktemp)
    "$here/bin/lora" doctor
    failed=
    [ -n "${LORA_NO_TESTS:-}" ] || LORA_DEVICE=cuda "$0" test || failed=1
    "$python" "$peers/random_model.py" "$shape" "$models/$shape"
    for variant in ${LORA_VARIANTS:-lora rslora dora qlora}; do
        set -- --model "$models/$shape" --variant "$variant" --dtype bf16 --device "${LORA_DEVICE:-cuda}" \
            --batch "$batch" --seq "$tokens" --steps 5 --warmup 3
        echo "$variant ours $("$here/benches/root-train_step" "$@" | tail -1)" | tee -a "$rows"
        for peer in ${LORA_BESIDE:-peft}; do
            step=$("$python" "$peers/${peer}_step.py" --cache "$models" "$@" 2>"$rows.log" | tail -1)
            [ -n "$step" ] || tail -1 "$rows.log" >&2
            echo "$variant $peer $step" | tee -a "$rows"
        done
    done
    "$python" "$peers/gpu_table.py" "$rows" "${batch}x$tokens"
    [ -z "$failed" ] || exit 1 ;;
*) sed -n 2p "$0" >&2; exit 2 ;;
esac
