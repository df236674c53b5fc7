#!/usr/bin/env bash
# From a fresh checkout to answers: installs, exports the embedded model, asks it about two
# pictures under four policies, and shows which image tokens each of them kept.
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

# ask NAME PROMPT: the same question under every policy, and what each kept of the picture.
ask() {
    local name="$1" prompt="$2" policy
    for policy in dense fastv avl avl+fastv; do
        echo
        echo "== samples/$name.png: \"$prompt\" with policy $policy"
        avl-run "$PACKAGE" "$prompt" --image "samples/$name.png" --policy "$policy" \
            --stats --show --heatmap "build/$name-$policy.png"
    done
}

ask page "Read the text."
ask scene "Describe the image."

cat <<'DONE'

Done. build/page-avl.png and its neighbours show which image tokens each policy kept.
Ask more:
    .venv/bin/avl-run build/avl-tiny.avl "How many objects are there?" --image samples/scene.png
Without a question a conversation begins; avl-tiny takes one picture, and after /clear another:
    .venv/bin/avl-run build/avl-tiny.avl --image samples/scene.png
DONE
