#!/bin/sh
# Builds the check of the products with the address and undefined-behaviour sanitizers and runs it with every
# instruction set this machine has: run.sh OUT_DIR [cases [seed]]. Needs a C++ compiler only. Objects are kept and
# built again when a source is newer.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
out=$1
shift
mkdir -p "$out"
CXX=${CXX:-c++}
flags="-std=c++20 -O0 -g -fno-math-errno -ffp-contract=fast -fno-omit-frame-pointer
  -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi"
# GCC's own headers of intrinsics begin some results uninitialised.
$CXX -dM -E -x c++ /dev/null | grep -q __clang__ || flags="$flags -Wno-uninitialized -Wno-maybe-uninitialized"

stale() { # object: is a source newer?
  [ ! -e "$1" ] || [ -n "$(find "$here" -newer "$1" -type f | head -n 1)" ]
}
compile() { # source object flags
  source=$1 object=$2
  shift 2
  if stale "$object"; then
    $CXX $flags "$@" -c "$here/$source" -o "$object.new" && mv "$object.new" "$object"
  fi
}

case $(uname -m) in
  x86_64) sets="scalar: avx2:-march=x86-64-v3 avx512:-march=x86-64-v4,-mprefer-vector-width=512" ;;
  *) sets="scalar:" ;;
esac
jobs=
for set in $sets; do
  compile isa/table.cpp "$out/${set%%:*}.o" $(echo "${set#*:}" | tr , ' ') -DPK_ISA="${set%%:*}" &
  jobs="$jobs $!"
done
for source in product pool check/main; do
  compile $source.cpp "$out/$(basename $source).o" &
  jobs="$jobs $!"
done
for job in $jobs; do wait "$job"; done
$CXX -fsanitize=address,undefined "$out"/*.o -o "$out/check" -lpthread
"$out/check" "$@"
