#!/usr/bin/env bash
# Runs code under the address and undefined-behavior sanitizers: the CPU kernels on random inputs, with each instruction
# set, then the tests of `_host`, then the tests of the emulated CUDA kernels. Memory leaks are not checked, because
# Python itself leaks.
#
#   BIN              folder of the Python interpreter (default .venv/bin)
#   CXX              compiler (default g++)
#   SANITIZE_CASES   random cases per kernel (default 5000)
#   SANITIZE_SEED    seed of the cases (default 1)
set -euo pipefail
cd "$(dirname "$0")/../.."
BIN=${BIN:-$PWD/.venv/bin}
CXX=${CXX:-g++}
BUILD=build/sanitize
FLAGS=(-std=c++17 -O1 -g -Wall -pthread -fPIC -fvisibility=hidden -fno-omit-frame-pointer -fsanitize=address,undefined
  -fno-sanitize-recover=all -Wno-maybe-uninitialized -Wno-uninitialized)

library() { "$CXX" -print-file-name="lib$1.so"; }

# Writes the ninja file, which rebuilds what changed.
mkdir -p "$BUILD"
{
  includes=$("$BIN/python" -m pybind11 --includes)
  printf 'builddir = %s\nrule cxx\n command = %s\n depfile = $out.d\n deps = gcc\n description = compile $in\n' "$BUILD" \
    "$CXX ${FLAGS[*]} $includes -MMD -MF \$out.d -c \$in -o \$out"
  printf 'rule link\n command = %s $flags $in -o $out\n description = link $out\n' "$CXX ${FLAGS[*]}"
  driver= host=
  for source in csrc/cpu/*.cpp csrc/host/*.cpp tests/sanitize/*.cpp; do
    object=$BUILD/$source.o
    echo "build $object: cxx $source"
    case $source in
      csrc/host/module.cpp) host+=" $object" ;;
      csrc/host/*) host+=" $object" driver+=" $object" ;;
      *) driver+=" $object" ;;
    esac
  done
  printf 'build %s: link %s\n' "$BUILD/driver" "$driver"
  printf 'build %s: link %s\n flags = -shared\n' "$BUILD/_host.so" "$host"
} > "$BUILD/build.ninja"
"$BIN/ninja" -f "$BUILD/build.ninja"

for isa in baseline avx2 avx512 avx512bf16; do
  SPURMIX_CPU_ISA=$isa "$BUILD/driver" "${SANITIZE_CASES:-5000}" "${SANITIZE_SEED:-1}"
done

export ASAN_OPTIONS=detect_leaks=0 OMP_WAIT_POLICY=passive

# A copy of the package whose only compiled module is the sanitized `_host`.
rm -rf "$BUILD/python"
mkdir -p "$BUILD/python"
cp -r spurmix "$BUILD/python"
rm -f "$BUILD"/python/spurmix/*.so
cp "$BUILD/_host.so" "$BUILD/python/spurmix/"
(
  export PYTHONPATH=$BUILD/python LD_PRELOAD="$(library asan) $(library stdc++)"
  "$BIN/python" -P -c "from spurmix import _host; assert '$BUILD' in _host.__file__, _host.__file__"
  "$BIN/python" -P -m pytest -p no:cacheprovider -k 'not threads_start' \
    tests/core/test_groups.py tests/core/test_cells.py tests/data/pack/test_direct_writer.py tests/data/dataset/test_checksums.py
)

# The emulated kernels are compiled first, because the compiler does not run with the sanitizers' libraries preloaded.
export EMULATED_SANITIZERS=address,undefined
PYTHONPATH=tests/kernels/cuda "$BIN/python" -c 'import emulated; emulated.compile_module(emulated.FOLDER)'
LD_PRELOAD="$(library asan) $(library ubsan) $(library stdc++)" "$BIN/python" -m pytest -p no:cacheprovider \
  -k 'not first_call' tests/kernels/cuda/test_cuda.py tests/kernels/cuda/test_cuda_embeddings.py
