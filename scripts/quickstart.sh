#!/usr/bin/env bash
# From a fresh checkout to answers: installs, exports the embedded model, asks it about two
# pictures under four policies, and draws which image tokens A-VL kept.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install export dev
cd "$ROOT"
export PATH="$VENV/bin:$PATH"
readonly PACKAGE=build/avl-tiny.avl
mkdir -p build

echo "== Exporting avl-tiny, the embedded vision-language model, to $PACKAGE"
rm -rf "$PACKAGE"
avl-export --model avl-tiny --out "$PACKAGE"

# ask PICTURE PROMPT: the same question under every policy.
ask() {
    local picture="$1" prompt="$2" policy
    for policy in dense fastv avl avl+fastv; do
        echo
        echo "== $picture: \"$prompt\" with policy $policy"
        avl-run "$PACKAGE" "$prompt" --image "$picture" --policy "$policy" --stats
    done
}

ask samples/page.png "Read the text."
ask samples/scene.png "Describe the image."

echo
echo "== Drawing core, secondary and minor image tokens of A-VL to build/heatmap.png"
avl-run "$PACKAGE" "Describe the image." --image samples/scene.png --policy avl \
    --heatmap build/heatmap.png

cat <<'DONE'

Done. Ask more, without a prompt for a conversation:
    .venv/bin/avl-run build/avl-tiny.avl "How many objects are there?" --image samples/scene.png
DONE
