#!/bin/sh
# Every row of the comparison of the fused kernels, one after the other, on THREADS pinned threads (1): JSON and CSV
# in the folder given. Takes about an hour on a 2-core machine; nothing else should run.
#
#   benchmarks/run_fused.sh FOLDER [MESH]
#
# MESH is S1's left white-matter surface, wm_lh.gii, from the source archive of pycortex:
#   pip download --no-deps --no-binary pycortex pycortex
#   tar xzf pycortex-*.tar.gz --wildcards '*/filestore/db/S1/surfaces/wm_lh.gii'
# It has 152,893 vertices and 1,070,239 directed edges, self edges included. Without it its rows are left out.
set -eu

if [ $# -lt 1 ]; then
    echo "usage: $0 FOLDER [MESH]" >&2
    exit 2
fi
folder=$1
mesh=${2-}
rounds=${ROUNDS-11}
threads=${THREADS-1}
eqconv=${EQCONV-eqconv}
mkdir -p "$folder"

# run NAME ARGUMENTS...: one command, whose report is NAME.json and NAME.csv. A row that fails is in the report.
run() {
    name=$1
    shift
    echo "== $name" >&2
    $eqconv bench feature_steered --threads "$threads" --rounds "$rounds" \
        --json "$folder/$name.json" --csv "$folder/$name.csv" "$@" || echo "$name: exit code $?" >&2
}

released='v1+unsorted+last+nofold+raw@tensorflow'
sorted='v1+sorted+last@tensorflow'
xla='v1+unsorted+last+xla@tensorflow'
traced='v1+sorted+last+function@tensorflow'
csr='sparse_matmul+last@torch'
v3='v3+last@torch'
compiled='v1+unsorted+last+compile@torch'
fused='fused@*'

if [ -n "$mesh" ]; then
    # Peak memory is measured in these runs, too.
    run s1-forward --mesh "$mesh" --set channels=32 --set outputs=32 --set matrices=8 --forward \
        --only "$released" --only "$sorted" --only "$xla" --only "$csr" --only "$v3" --only "$compiled" --only "$fused"
    run s1-backward --mesh "$mesh" --set channels=32 --set outputs=32 --set matrices=8 --backward \
        --only "$released" --only "$sorted" --only "$xla" --only "$csr" --only "$compiled" --only "$fused"
fi

run hcp-forward --problem cortex-32k --set channels=64 --set outputs=64 --set matrices=32 --forward \
    --only "$traced" --only "$xla" --only "$csr" --only "$v3" --only "$compiled" --only "$fused"
run hcp-backward --problem cortex-32k --set channels=64 --set outputs=64 --set matrices=32 --backward \
    --only "$traced" --only "$xla" --only "$csr" --only "$compiled" --only "$fused"

# Densities 0.25 and 0.02: eager, v2, PyTorch's v3, XLA.
run pr101 --case pr101 --sparsity 0.75,0.98 --seed 123 \
    --only "$released" --only 'v2+last+raw@tensorflow' --only "$v3" --only "$xla" --only "$fused"

run overhead --case overhead --no-memory
