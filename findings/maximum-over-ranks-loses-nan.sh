#!/usr/bin/env bash
# A maximum over ranks of which one has a NaN: torch.distributed on gloo, MPICH and MLX give NaN at some places of the tensor, the true maximum at others, and at others a number below it, since the NaN replaced what came before and was replaced; JAX drops the NaN everywhere. A maximum within one tensor is NaN in PyTorch, NumPy and JAX.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 jax==0.10.2 jaxlib==0.10.2 "mlx[cpu]==0.32.4" mpich==5.0.2 mpi4py==4.1.2 numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 HYDRA_LAUNCHER=fork TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, os, socket, subprocess, sys, tempfile
from importlib.metadata import version
import numpy as np

RANKS, N = 4, 8
# What each rank has, as the largest absolute value of its rows, of which one scale is to be made.
VALUES = [[np.full(N, np.nan if rank == bad else rank + 1, np.float32) for rank in range(RANKS)] for bad in range(RANKS)]

def gloo(rank, out):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=RANKS)
    found = []
    for values in VALUES:
        x = torch.from_numpy(values[rank].copy())
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
        found.append(x.tolist())
    dist.destroy_process_group()
    return found

def mlx(rank, out):
    import mlx.core as mx
    group = mx.distributed.init(strict=True, backend="ring")
    with mx.stream(mx.cpu):
        return [np.array(mx.distributed.all_max(mx.array(values[rank]), group=group)).tolist() for values in VALUES]

def mpich(rank, out):
    from mpi4py import MPI
    found = []
    for values in VALUES:
        y = np.empty(N, np.float32)
        MPI.COMM_WORLD.Allreduce(values[MPI.COMM_WORLD.rank], y, MPI.MAX)
        found.append(y.tolist())
    return found if MPI.COMM_WORLD.rank == 0 else None

def jax_(rank, out):
    import jax
    from jax.sharding import NamedSharding, PartitionSpec
    mesh = jax.make_mesh((RANKS,), ("rank",))
    largest = jax.jit(jax.shard_map(lambda x: jax.lax.pmax(x, "rank"), mesh=mesh, in_specs=PartitionSpec("rank"), out_specs=PartitionSpec()))
    return [np.array(largest(jax.device_put(np.concatenate(values), NamedSharding(mesh, PartitionSpec("rank"))))).tolist() for values in VALUES]

ENGINES = {"gloo": gloo, "mpich": mpich, "mlx": mlx, "jax": jax_}
if len(sys.argv) > 1:
    found = ENGINES[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
    if found and sys.argv[2] == "0":
        json.dump(found, open(sys.argv[3], "w"))
    sys.exit()

def ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found

def run(engine):
    out, me = tempfile.mktemp(), [sys.executable, __file__, engine]
    if engine == "mpich":
        subprocess.run([sys.prefix + "/bin/mpirun", "-n", str(RANKS), *me, "0", out], check=True)
    else:
        hosts = tempfile.mktemp()
        json.dump([[f"127.0.0.1:{port}"] for port in ports(RANKS)], open(hosts, "w"))
        n = 1 if engine == "jax" else RANKS
        jobs = [subprocess.Popen([*me, str(rank), out], env=dict(os.environ, MLX_HOSTFILE=hosts, MLX_RANK=str(rank))) for rank in range(n)]
        assert not any([job.wait() for job in jobs])
    return np.array(json.load(open(out)))

print("torch", version("torch"), "mpich", version("mpich"), "mpi4py", version("mpi4py"), "mlx", version("mlx"), "jax", version("jax"))
# Of all results: is a NaN there, is a number there, is a number there that is below the largest of the others.
WANT = dict.fromkeys(("gloo", "mpich", "mlx"), (True, True, True)) | {"jax": (False, True, False)}
wrong = 0
for engine, want in WANT.items():
    found = run(engine)
    for bad, y in enumerate(found):
        print(f"{engine}: rank {bad} has NaN, the others {[r + 1 for r in range(RANKS) if r != bad]}: {y.tolist()}")
    top = np.array([[max(r + 1 for r in range(RANKS) if r != bad)] for bad in range(RANKS)])
    wrong += (bool(np.isnan(found).any()), bool((~np.isnan(found)).any()), bool((found < top).any())) != want
import jax.numpy as jnp, torch
within = all(np.isnan(largest(np.stack(values))).all() for values in VALUES for largest in (lambda x: torch.from_numpy(x).amax(0).numpy(), lambda x: x.max(0), lambda x: np.array(jnp.max(x, 0))))
print("amax of torch, max of numpy and of jax over the same values in one tensor are NaN everywhere:", within)
sys.exit(bool(wrong) or not within)
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
