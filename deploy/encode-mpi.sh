#!/bin/sh
# Encodes a dataset under Open MPI, which here only starts processes and numbers them:
#
#     mpirun -np 8 --map-by node deploy/encode-mpi.sh config.toml
set -eu
exec "${LAPFLOW:-lapflow}" encode "$@" --shard "$OMPI_COMM_WORLD_RANK/$OMPI_COMM_WORLD_SIZE"
