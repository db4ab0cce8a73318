#!/bin/bash
# Runs the command and the environment of encode-job.yaml without a cluster: as many processes as
# completions, each with the JOB_COMPLETION_INDEX that an Indexed Job would give it, some killed
# and started again as backoffLimitPerIndex would. The manifest's structure is checked by a YAML
# parser; no Kubernetes takes part. Usage: deploy/tests/kubernetes.sh [IMAGES]
#
# Needs python3 and uv; skips, saying so, where one is missing.
. "$(dirname "$0")/common.sh"
trap 'rm -rf "$scratch"' EXIT
need_reader
uv pip install -q --python "$python" pyyaml==6.0.3
images=$scratch/images
write_images "$images" "${1:-600}"
for name in alone job detected; do
  write_config "$scratch/$name.toml" "$scratch/$name"
done
"$LAPFLOW" encode "$scratch/alone.toml" 2>/dev/null
"$python" - "$deploy/encode-job.yaml" "$scratch/job.toml" <<'PY'
import os, re, signal, subprocess, sys, time
import yaml

job = yaml.safe_load(open(sys.argv[1]))
assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
spec = job["spec"]
assert spec["completionMode"] == "Indexed" and spec["backoffLimitPerIndex"] > 0
pod = spec["template"]["spec"]
assert pod["restartPolicy"] == "Never"
container = pod["containers"][0]
variables = {entry["name"]: entry["value"] for entry in container["env"]}
assert int(variables["WORKERS"]) == spec["completions"]

def start(index):
    env = {**os.environ, **variables, "JOB_COMPLETION_INDEX": str(index)}
    words = [*container["command"], *container["args"]]
    # What the kubelet does: $(NAME) becomes the variable's value.
    words = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in words]
    words = [os.environ["LAPFLOW"] if word == "lapflow" else word for word in words]
    words = [sys.argv[2] if word == "/config/config.toml" else word for word in words]
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

killed = 0
todo = list(range(spec["completions"]))
while todo:
    index = todo.pop(0)
    pod = start(index)
    if killed < 5 and index % 3 == 0:
        time.sleep(0.02 + 0.05 * killed)
        pod.send_signal(signal.SIGKILL)
        if pod.wait() != 0:
            killed += 1
            todo.append(index)
    else:
        said = pod.communicate()[1]
        assert pod.returncode == 0, f"pod {index} failed: {said}"
print(f"{spec['completions']} pods done, {killed} killed and started again")
PY
complete "$scratch/job.toml"
same_rows "$scratch/job" "$scratch/alone"
# Without --shard: the index is the cluster's, the count LAPFLOW_WORKERS.
for index in 0 1 2; do
  JOB_COMPLETION_INDEX=$index LAPFLOW_WORKERS=3 "$LAPFLOW" encode "$scratch/detected.toml" 2>&1 >/dev/null | grep "part ."
done
complete "$scratch/detected.toml"
same_rows "$scratch/detected" "$scratch/alone"
