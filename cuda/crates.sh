# Sourced: where cargo keeps the crates that Cargo.lock names, and what cudarc binds of CUDA.

# crate NAME: the folder of its source.
crate() {
  local lock version
  lock=$(dirname "${BASH_SOURCE[0]}")/../Cargo.lock
  version=$(grep -A1 "^name = \"$1\"$" "$lock" | sed -n 's/^version = "\(.*\)"$/\1/p')
  ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$1-$version" | head -n 1
}

# functions MODULE: names of the C functions that cudarc declares for it.
functions() {
  awk '/extern "C" \{$/ {inside = 1; next}
    inside && /fn / {match($0, /fn [A-Za-z0-9_]+/); print substr($0, RSTART + 3, RLENGTH - 3); inside = 0}' \
    "$(crate cudarc)/src/$1/sys/mod.rs" | sort -u
}
