#!/usr/bin/env bash
# A sum over ranks of rows that are equal: all_reduce of torch.distributed on gloo and all_sum of MLX add in another order at another place of the tensor, so that a row's sum depends on where it stands and on how many rows there are; MPICH and JAX add all rows alike. Sums of float16 are rounded at every step by all four; of bfloat16 by gloo and MLX, while JAX sums them in float32.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 jax==0.10.2 jaxlib==0.10.2 "mlx[cpu]==0.32.4" mpich==5.0.2 mpi4py==4.1.2 ml_dtypes==0.6.0 numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 HYDRA_LAUNCHER=fork TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, os, socket, subprocess, sys, tempfile
from importlib.metadata import version
import ml_dtypes
import numpy as np

RANKS, H = 4, 64
PARTS = np.random.default_rng(5).standard_normal((RANKS, H)).astype(np.float32)  # what a rank has to add to a row of H columns
ROWS = (1, 2, 3, 4, 256)
# Float32 rows that are all equal, then one number per rank in 16 bits, 8 times.
CASES = [[np.tile(PARTS[rank], rows) for rank in range(RANKS)] for rows in ROWS]
CASES += [[np.full(8, first if rank == 0 else 1, kind) for rank in range(RANKS)] for first, kind in ((256, ml_dtypes.bfloat16), (2048, np.float16))]

def gloo(rank):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}.store", rank=rank, world_size=RANKS)
    for case in CASES:
        x = torch.from_numpy(case[rank].astype(np.float32)).to(getattr(torch, case[rank].dtype.name))
        dist.all_reduce(x)
        yield x.float().tolist()
    dist.destroy_process_group()

def mlx(rank):
    import mlx.core as mx
    group = mx.distributed.init(strict=True, backend="ring")
    with mx.stream(mx.cpu):
        for case in CASES:
            x = mx.array(case[rank].astype(np.float32)).astype(getattr(mx, case[rank].dtype.name))
            yield np.array(mx.distributed.all_sum(x, group=group).astype(mx.float32)).tolist()

def mpich(rank):
    from mpi4py import MPI
    for case in CASES:
        x = case[MPI.COMM_WORLD.rank]
        if x.dtype == ml_dtypes.bfloat16:  # mpi4py does not take it
            yield None
            continue
        y = np.empty_like(x)
        MPI.COMM_WORLD.Allreduce(x, y)
        yield y.astype(np.float32).tolist()

def jax_(rank):
    import jax
    from jax.sharding import NamedSharding, PartitionSpec
    mesh = jax.make_mesh((RANKS,), ("rank",))
    total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "rank"), mesh=mesh, in_specs=PartitionSpec("rank"), out_specs=PartitionSpec()))
    for case in CASES:
        yield np.array(total(jax.device_put(np.concatenate(case), NamedSharding(mesh, PartitionSpec("rank"))))).astype(np.float32).tolist()

ENGINES = {"gloo": gloo, "mlx": mlx, "mpich": mpich, "jax": jax_}
if len(sys.argv) > 1:
    found = list(ENGINES[sys.argv[1]](int(sys.argv[2])))
    if sys.argv[2] == os.environ.get("PMI_RANK", "0") == "0":
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
    return [None if x is None else np.array(x, np.float32) for x in json.load(open(out))]

print("torch", version("torch"), "mlx", version("mlx"), "mpich", version("mpich"), "mpi4py", version("mpi4py"), "jax", version("jax"))
WANT = {  # distinct sums of equal rows at each number of rows, does the first row's sum change, bfloat16, float16
    "gloo": ([1, 2, 3, 4, 4], True, [256, 260], [2048, 2052]),
    "mlx": ([1, 2, 3, 4, 4], True, [256, 260], [2048, 2052]),
    "mpich": ([1, 1, 1, 1, 1], False, None, [2050]),
    "jax": ([1, 1, 1, 1, 1], False, [260], [2048]),
}
bad = 0
for engine, want in WANT.items():
    *rows, bf16, f16 = run(engine)
    rows = [y.reshape(-1, H) for y in rows]
    got = [len(np.unique(y, axis=0)) for y in rows], any((y[0] != rows[0][0]).any() for y in rows), *(None if x is None else sorted(set(x.tolist())) for x in (bf16, f16))
    print(f"{engine}: of {', '.join(map(str, ROWS))} equal rows {', '.join(map(str, got[0]))} distinct sums; the first row's sum changes with the number of rows: {got[1]}; 256 + 1 + 1 + 1 in bfloat16: {got[2]}, 2048 + 1 + 1 + 1 in float16: {got[3]}")
    bad += got != want
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
