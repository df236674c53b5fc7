#!/usr/bin/env bash
# Makes a virtual environment of the libraries beside which avl-bench measures avl (peers.txt):
#     ./scripts/peers.sh [FOLDER]          # default: build/peers
# llama.cpp is compiled, for this machine: that needs a C++ compiler and some minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

readonly PLACE="${1-$ROOT/build/peers}"
if [[ $# -gt 1 || -z "$PLACE" || "$PLACE" == -* ]]; then
    fail "expected one folder at most, found: $*; run: ./scripts/peers.sh [FOLDER]"
fi
PYTHON_FOUND="$(find_python)"
[[ -x "$PLACE/bin/python" ]] || "$PYTHON_FOUND" -m venv "$PLACE" ||
    fail "$PYTHON_FOUND cannot make a virtual environment in $PLACE; name another folder"

cmake="-DLLAVA_BUILD=ON -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
cmake+=" -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF"
if [[ "$(uname -m)" == x86_64 ]]; then
    # Compiled by GCC 12.2 for AMX, llama.cpp ends in a general protection fault: the compiler drops
    # the stores of the tile configuration.
    no="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    cmake+=" -DCMAKE_C_FLAGS='$no' -DCMAKE_CXX_FLAGS='$no'"
fi
CMAKE_ARGS="$cmake" "$PLACE/bin/python" -m pip install -q --no-binary llama-cpp-python \
    -r "$ROOT/scripts/peers.txt" || fail "pip could not install the peers; see its message above"
# llama.cpp's converter of checkpoints is in the source alone.
source="$PLACE/llama.cpp.part"
rm -rf "$source" "$PLACE/llama.cpp"
mkdir "$source"
"$PLACE/bin/python" -m pip download -q --no-deps --no-binary llama-cpp-python -d "$source" \
    "$(grep -x 'llama-cpp-python==.*' "$ROOT/scripts/peers.txt")" &&
    tar -xzf "$source"/*.tar.gz -C "$source" --strip-components=3 --wildcards \
        '*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' \
        '*/vendor/llama.cpp/gguf-py/*' ||
    fail "llama.cpp's converter could not be taken from its source; see the message above"
rm "$source"/*.tar.gz
mv "$source" "$PLACE/llama.cpp"
# optimum-intel brings it, nothing here uses it, and beside torch's build for CPUs the one from the
# index cannot be imported, nor then transformers' models.
"$PLACE/bin/python" -m pip uninstall -q -y torchvision ||
    fail "pip could not remove torchvision; see its message above"
echo "$PLACE/bin/python"
