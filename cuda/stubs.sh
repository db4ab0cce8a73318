#!/bin/bash
# Link-time stand-ins for the CUDA libraries: each opens the real one at the first call of one of its
# functions, so that the linked binary starts on any machine and says that there is no device where
# there is none. Usage: cuda/stubs.sh OUT; then LIBRARY_PATH=OUT cargo build --features cuda
#
# A function is one indirect jump through a table. Its entry points to code that keeps the arguments'
# registers, looks the function up and puts it in the table; x86-64, System V calls.
set -euo pipefail
out=$1
mkdir -p "$out"
source "$(dirname "$0")/crates.sh"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# stub MODULE LIBRARY SONAMES ERROR: libLIBRARY.a, whose functions return ERROR if no SONAME opens.
stub() {
  local module=$1 library=$2 sonames=$3 error=$4 index=0 names
  mapfile -t names < <(functions "$module")
  [ ${#names[@]} -gt 0 ] || { echo "cudarc is not in cargo's registry: run cargo fetch" >&2; exit 1; }
  {
    echo .text
    for name in "${names[@]}"; do
      cat <<A
.globl $name
.type $name, @function
$name: jmp *table_$library+$((8 * index))(%rip)
first_${library}_$index: pushq \$$index
  jmp resolve_$library
A
      index=$((index + 1))
    done
    cat <<A
resolve_$library:
  pushq %rax; pushq %rdi; pushq %rsi; pushq %rdx; pushq %rcx; pushq %r8; pushq %r9
  subq \$136, %rsp
$(for i in {0..7}; do echo "  movups %xmm$i, $((16 * i))(%rsp)"; done)
  movq 192(%rsp), %rdi
  call lookup_$library
  movq %rax, %r11
$(for i in {0..7}; do echo "  movups $((16 * i))(%rsp), %xmm$i"; done)
  addq \$136, %rsp
  popq %r9; popq %r8; popq %rcx; popq %rdx; popq %rsi; popq %rdi; popq %rax
  addq \$8, %rsp
  jmp *%r11
.section .data.rel, "aw"
.hidden table_$library
.globl table_$library
table_$library:
$(for ((i = 0; i < index; i++)); do echo "  .quad first_${library}_$i"; done)
.section .note.GNU-stack, "", @progbits
A
  } >"$scratch/$library.s"
  cat >"$scratch/$library.c" <<C
#include <dlfcn.h>
#define HIDDEN __attribute__((visibility("hidden")))
extern void *table_$library[] HIDDEN;
static const char *const sonames[] = {$(printf '"%s", ' ${sonames//,/ }) 0};
static const char *const names[] = {$(printf '"%s", ' "${names[@]}")};
static int absent(void) { return $error; }
HIDDEN void *lookup_$library(long index) {
  static void *opened;
  for (const char *const *name = sonames; !opened && *name; name++)
    opened = dlopen(*name, RTLD_NOW | RTLD_GLOBAL);
  void *found = opened ? dlsym(opened, names[index]) : 0;
  return table_$library[index] = found ? found : (void *)absent;
}
C
  gcc -c -fPIC -o "$scratch/$library.s.o" "$scratch/$library.s"
  gcc -c -fPIC -O1 -o "$scratch/$library.c.o" "$scratch/$library.c"
  rm -f "$out/lib$library.a"
  ar crs "$out/lib$library.a" "$scratch/$library.s.o" "$scratch/$library.c.o"
}
# The errors: no device, not initialized, unhandled.
stub driver cuda libcuda.so.1 100
stub nvrtc nvrtc libnvrtc.so.13,libnvrtc.so.12 1
stub curand curand libcurand.so.10 203
stub cublas cublas libcublas.so.13,libcublas.so.12 1
stub cublaslt cublasLt libcublasLt.so.13,libcublasLt.so.12 1
stub nccl nccl libnccl.so.2 1
stub cudnn cudnn libcudnn.so.9 1001
# candle-kernels asks for the runtime, of which it calls nothing outside its quantized kernels.
ar crs "$out/libcudart.a"
