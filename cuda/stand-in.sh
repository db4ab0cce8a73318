#!/bin/bash
# A stand-in for nvcc, for type checks and for the emulation: PTX files are empty, and what
# candle-kernels links are traps of the names that it declares. Usage: cuda/stand-in.sh OUT, where
# OUT/bin/nvcc and OUT/lib (see stubs.sh) are made.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin"
"$here/stubs.sh" "$1/lib"
cat >"$1/bin/nvcc" <<'NVCC'
#!/bin/bash
set -eu
source= output= folder= make=object objects=()
while [ $# -gt 0 ]; do
  case $1 in
  --version) printf 'nvcc: stand-in\n\n\nCuda compilation tools, release 13.0, V13.0.88\n'; exit ;;
  -o) output=$2; shift ;;
  --output-directory) folder=$2; shift ;;
  --ptx) make=ptx ;;
  --lib) make=library ;;
  *.cu) source=$1 ;;
  *.o) objects+=("$1") ;;
  esac
  shift
done
case $make in
ptx) : >"$folder/$(basename "${source%.cu}").ptx" ;;
library) rm -f "$output"; ar crs "$output" "${objects[@]}" ;;
object)
  case $source in
  *moe_gguf.cu) sed -n 's/.*pub fn \([A-Za-z0-9_]*\).*/void \1(void) { __builtin_trap(); }/p' src/ffi.rs ;;
  esac | gcc -x c -fPIC -w -c -o "$output" - ;;
esac
NVCC
chmod +x "$1/bin/nvcc"
