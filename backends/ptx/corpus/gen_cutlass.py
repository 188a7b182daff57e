"""Inputs and expected values of kernels_cutlass.cu; used by gen.py. Needs CUTLASS's headers in the folder that CUTLASS names.

The launch recipe is what CUTLASS's own host code asks for: the program in kernels_cutlass.cu fills the kernel's parameters on a
machine without a GPU, with made-up addresses and a cuTensorMapEncodeTiled that prints its arguments; what it prints becomes the recipe.
"""
import os, re, shutil, subprocess, tempfile

import numpy as np

from gen import BF, E4, F32, f32, ptx_entries, rng, ue8m0, unpack_e2m1, write_entry, HERE
from gen_inference import randn

SWIZZLES = {"0": "none", "1": "32B", "2": "64B", "3": "128B"}
TYPES = {"0": "u8", "1": "u16", "9": "bf16", "13": "b4x16", "14": "b4x16_p64"}
BASE, STEP = 0x7e0000000000, 0x100000000


def compile_and_ask(defs, cc):
    """PTX of the one kernel, and what the host program prints."""
    with tempfile.TemporaryDirectory() as d:
        root = os.path.dirname(os.path.dirname(os.path.realpath(shutil.which("nvcc"))))
        cutlass, cudart = os.environ["CUTLASS"], [f for f in os.listdir(f"{root}/lib") if f.startswith("libcudart.so")][0]
        cmd = ["nvcc", "-std=c++17", "-gencode", f"arch=compute_{cc}a,code=compute_{cc}a", "--expt-relaxed-constexpr",
               "--expt-extended-lambda", "-DNDEBUG", "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL", "-keep", "-keep-dir", d, *defs,
               f"-I{root}/include", f"-I{root}/include/cccl", f"-I{cutlass}/include", f"-I{cutlass}/tools/util/include",
               os.path.join(HERE, "kernels_cutlass.cu"), "-o", f"{d}/host", "-cudart", "none", "-Xlinker", f"{root}/lib/{cudart}"]
        r = subprocess.run(cmd, capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(r.stderr[-700:])
        (ptx,) = [f for f in os.listdir(d) if f.endswith(".ptx")]
        ptx = re.sub(r"_INTERNAL_[0-9a-f]{8}_", "_INTERNAL_00000000_", open(f"{d}/{ptx}").read())
        ptx = re.sub(r"_cu_[0-9a-f]{8}_", "_cu_00000000_", ptx)
        r = subprocess.run([f"{d}/host"], capture_output=True, text=True, check=True, env=dict(os.environ, LD_LIBRARY_PATH=f"{root}/lib"))
        return ptx, r.stdout


def param_of(asked, buffers):
    """The bytes of the kernel's struct of parameters, with the places of addresses and tensor maps."""
    raw = bytes.fromhex(re.search(r"^params (\w+)", asked, re.M).group(1))
    bytes_, patch = bytearray(raw), []

    def buffer(address):
        number, offset = divmod(address - BASE, STEP)
        return buffers[number - 1], offset
    for m in re.finditer(r"^map (\d+) type (\d+) ptr (\w+) interleave 0 swizzle (\d) oob 0 rank \d\n dims (.*)\n strides (.*)\n box (.*)\n es (.*)", asked, re.M):
        at = raw.find(b"TENSORMAP%d\0" % int(m.group(1)))
        if at < 0:
            continue
        name, offset = buffer(int(m.group(3), 16))
        assert not offset
        dims, strides, box, es = ([int(x) for x in m.group(i).split()] for i in (5, 6, 7, 8))
        patch.append({"at": at, "tensor_map": {"buffer": name, "dtype": TYPES[m.group(2)], "dims": dims, "strides_bytes": strides, "box": box,
                                               "element_strides": es, "swizzle": SWIZZLES[m.group(4)], "interleave": "none", "oob": "zero"}})
        bytes_[at:at + 128] = bytes(128)
    for at in range(0, len(raw) - 7, 8):
        address = int.from_bytes(bytes_[at:at + 8], "little")
        if BASE < address < BASE + (len(buffers) + 1) * STEP:
            name, offset = buffer(address)
            patch.append({"at": at, "buffer": name, **({"offset_bytes": offset} if offset else {})})
            bytes_[at:at + 8] = bytes(8)
    return {"bytes": bytes_.hex(), "patch": sorted(patch, key=lambda p: p["at"])}


def build_cutlass(c, cc, root):
    ptx, asked = compile_and_ask(c["defs"], cc)
    (entry,) = ptx_entries(ptx)
    n = [int(x) for x in re.search(r"^grid (\d+) (\d+) (\d+) block (\d+) (\d+) (\d+) cluster (\d+) (\d+) (\d+) smem (\d+)", asked, re.M).groups()]
    launch = {"entry": entry, "target": re.search(r"\.target\s+(\w+)", ptx).group(1), "grid": n[0:3], "block": n[3:6], "cluster": n[6:9],
              "dynamic_smem_bytes": n[9], "params": [param_of(asked, c["names"])], "outputs": ["d"], "tolerance": {"d": {"rel_fro": c["tol"]}}}
    return write_entry(root, f"nvcc_{c['name']}_sm{cc}", ptx, launch, c["bufs"], dict(d=c["exp"]), "nvcc", "high", c["note"])


def interleaved(scales):
    """[rows, blocks of K] as CUTLASS's layout of scale factors: 128 rows by 4 blocks make 512 bytes, row r of them at 16 (r % 32) + 4 (r / 32)."""
    rows, blocks = scales.shape
    return np.ascontiguousarray(scales.reshape(rows // 128, 4, 32, blocks // 4, 4).transpose(0, 3, 2, 1, 4)).reshape(-1)


def cases():
    out = []

    def scaled(name, M, N, K, fa, fb, vec, tile, cluster, schedule, note, arch=100):
        g = rng("cutlass_" + name)

        def operand(rows, fmt):
            if fmt == "e2m1":
                u = g.integers(0, 256, (rows, K // 2)).astype(np.uint8)
                v = unpack_e2m1(u)
            else:
                u = randn(g, rows, K, dt=E4, sc=2)
                v = f32(u)
            if vec == 32:
                s = g.integers(122, 131, (rows, K // vec)).astype(np.uint8)
                sv = ue8m0(s)
            else:
                s = (np.abs(g.standard_normal((rows, K // vec))) + .1).astype(F32).astype(E4)
                sv = f32(s)
            return u, interleaved(s), v.astype(float) * np.repeat(sv.astype(float), vec, 1)
        a, sa, av = operand(M, fa)
        b, sb, bv = operand(N, fb)
        kind = "nv_float4_t" if vec == 16 else "mx_float{}_t"
        element = {"e2m1": f"cutlass::{kind.format(4)}<cutlass::float_e2m1_t>", "e4m3": f"cutlass::{kind.format(8)}<cutlass::float_e4m3_t>"}
        aligned = {"e2m1": 128 if fa != fb else 32, "e4m3": 16}
        two = tile[0] == 256
        defs = dict(SCALED=1, OPCLASS="cutlass::arch::OpClassBlockScaledTensorOp", EA=element[fa], EB=element[fb], AA=aligned[fa], AB=aligned[fb],
                    TM=tile[0], TN=tile[1], TK=tile[2], CM=cluster[0], CN=cluster[1], STAGES=2, PM=M, PN=N, PK=K, PL=1,
                    SCHED="cutlass::gemm::KernelTmaWarpSpecialized" + schedule, ARCH=f"Sm{arch}",
                    EPI=f"cutlass::epilogue::NoSmemWarpSpecialized{2 if two else 1}Sm" if arch == 100 else "cutlass::epilogue::collective::EpilogueScheduleAuto")
        out.append(dict(name="cutlass_" + name, defs=[f"-DK_{k}={v}" for k, v in defs.items()], names=["a", "b", "sa", "sb", "d"],
                        bufs=dict(a=a, b=b, sa=sa, sb=sb, d=np.zeros((M, N), BF)), exp=(av @ bv.T).astype(F32).astype(BF), tol=4e-3, targets=(arch,), note=note))

    scaled("mxfp4_mxfp8_pair", 512, 128, 384, "e2m1", "e4m3", 32, (256, 128, 128), (2, 1), "2SmMxf8f6f4Sm100", "CUTLASS's GemmUniversal: pairs of CTAs, fp4 widened to bytes by TMA, scales by tcgen05.cp, tiles by cluster launch control")
    scaled("mxfp4_mxfp8", 128, 128, 384, "e2m1", "e4m3", 32, (128, 128, 128), (1, 1), "1SmMxf8f6f4Sm100", "as nvcc_cutlass_mxfp4_mxfp8_pair, without pairs")
    scaled("nvfp4", 128, 128, 768, "e2m1", "e2m1", 16, (128, 128, 256), (1, 1), "1SmNvf4Sm100", "CUTLASS's GemmUniversal, both operands packed fp4 with e4m3 scales")
    scaled("mxfp4", 128, 128, 768, "e2m1", "e2m1", 32, (128, 128, 256), (1, 1), "1SmMxf4Sm100", "CUTLASS's GemmUniversal, both operands packed fp4 with ue8m0 scales")
    scaled("mxfp4_mxfp8", 128, 128, 384, "e2m1", "e4m3", 32, (128, 128, 128), (1, 1), "Mxf8f6f4Sm120", "CUTLASS's GemmUniversal for sm_120: fp4 widened to bytes by TMA and ldmatrix, mma.sync with block scales; relies on elect.sync picking the lowest lane", arch=120)
    return out


def build_deepgemm(c, cc, root):
    """Recipes after DeepGEMM's csrc/jit_kernels/impls; its headers lie in the folder that DEEPGEMM names."""
    with tempfile.TemporaryDirectory() as d:
        nv = os.path.dirname(os.path.dirname(os.path.realpath(shutil.which("nvcc"))))
        cmd = ["nvcc", "-ptx", "-std=c++20", f"-arch=sm_{cc}a", "--expt-relaxed-constexpr", "--expt-extended-lambda", "-DNDEBUG",
               f"-I{nv}/include", f"-I{nv}/include/cccl", f"-I{os.environ['CUTLASS']}/include", f"-I{os.environ['DEEPGEMM']}/deep_gemm/include",
               os.path.join(HERE, "kernels_deepgemm.cu"), "-o", f"{d}/k.ptx"]
        r = subprocess.run(cmd, capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(r.stderr[-700:])
        ptx = open(f"{d}/k.ptx").read()
    ptx = re.sub(r"_cu_[0-9a-f]{8}_", "_cu_00000000_", re.sub(r"_INTERNAL_[0-9a-f]{8}_", "_INTERNAL_00000000_", ptx))
    (entry,) = ptx_entries(ptx)
    launch = {"entry": entry, "target": f"sm_{cc}a", "grid": [2, 1, 1], "block": [256, 1, 1], "cluster": [2, 1, 1],
              "dynamic_smem_bytes": c["smem"], "params": c["params"], "outputs": ["d"], "tolerance": {"d": {"rel_fro": 4e-3}}}
    return write_entry(root, f"nvcc_{c['name']}_sm{cc}", ptx, launch, c["bufs"], dict(d=c["exp"]), "nvcc", "high", c["note"])


def deepgemm_cases():
    g = rng("deepgemm_fp8_fp4_pair")
    M, N, K = 152, 256, 512

    def packed(e):
        """Scales' exponents [rows, n] as i32 [n / 4, rows]: four scales along K in a word."""
        return np.ascontiguousarray(e.reshape(len(e), -1, 4).transpose(1, 0, 2)).view(np.int32).reshape(-1, len(e))

    def tensor(name, dtype, dims, stride, box, swizzle):
        return {"tensor_map": {"buffer": name, "dtype": dtype, "dims": dims, "strides_bytes": [stride], "box": box, "element_strides": [1, 1],
                               "swizzle": swizzle, "interleave": "none", "oob": "zero"}}
    a, b = randn(g, M, K, dt=E4), g.integers(0, 256, (N, K // 2)).astype(np.uint8)
    ea, eb = g.integers(120, 131, (M, K // 128)).astype(np.uint8), g.integers(120, 131, (N, K // 32)).astype(np.uint8)
    av = f32(a).astype(float) * np.repeat(ue8m0(ea), 128, 1)
    bv = unpack_e2m1(b).astype(float) * np.repeat(ue8m0(eb), 32, 1)
    sa, sb = packed(ea), packed(eb)
    params = [{"null": True}, {"u32": M}, {"u32": N}, {"u32": K}, tensor("a", "u8", [K, M], K, [128, 64], "128B"),
              tensor("b", "b4x16_p64", [K, N], K // 2, [128, 128], "128B"), tensor("sa", "i32", [M, len(sa)], M * 4, [128, 1], "none"),
              tensor("sb", "i32", [N, len(sb)], N * 4, [128, 1], "none"), tensor("d", "bf16", [N, M], N * 2, [64, 16], "128B")]
    return [dict(name="deepgemm_fp8_fp4_pair", params=params, bufs=dict(a=a, b=b, sa=sa, sb=sb, d=np.zeros((M, N), BF)),
                 exp=(av @ bv.T).astype(F32).astype(BF), smem=205000, targets=(100,),
                 note="DeepGEMM's sm100_fp8_fp4_gemm_1d1d: operands swapped, pairs of CTAs, fp4 widened to bytes by TMA, scales by tcgen05.cp")]
