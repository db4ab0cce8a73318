# Sourced with `scratch` set: a CUDA toolkit of Python packages in $scratch/venv, without root (needs uv).
if [ ! -x "$scratch/venv/bin/python" ]; then
  uv venv -q "$scratch/venv"
fi
CUDA_HOME=$(echo "$scratch"/venv/lib/python3.*/site-packages/nvidia/cu13)
if [ ! -x "$CUDA_HOME/bin/nvcc" ]; then
  uv pip install -q --python "$scratch/venv/bin/python" --no-deps \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
  CUDA_HOME=$(echo "$scratch"/venv/lib/python3.*/site-packages/nvidia/cu13)
  ln -sfn lib "$CUDA_HOME/lib64"
fi
export CUDA_HOME PATH=$CUDA_HOME/bin:$PATH
