"""Triton kernels in the manner of inference engines: fused MoE, routing, attention, norms."""
import triton
import triton.language as tl


@triton.jit
def fused_moe(a_ptr, b_ptr, c_ptr, as_ptr, bs_ptr, w_ptr, slot_ptr, expert_ptr, n_slots_ptr, N, K, n_valid, TOP_K: tl.constexpr,
              WEIGH: tl.constexpr, GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GM: tl.constexpr):
    """c[slot] = a[slot // TOP_K] @ b[expert].T, one expert a block of BM rows; slots sorted by expert, padded with n_valid.

    a [T, K], b [E, N, K], c [T*TOP_K, N]. An expert of -1 stands for experts of another rank: their rows become zero.
    GROUP > 0: a and b are fp8, with one f32 scale for each [1, GROUP] of a and [GROUP, GROUP] of b."""
    pid = tl.program_id(0)
    n_slots = tl.load(n_slots_ptr)
    rows = tl.cdiv(n_slots, BM)
    cols = tl.cdiv(N, BN)
    band = pid // (GM * cols)
    height = min(rows - band * GM, GM)
    if band * GM >= rows:
        return
    pm = band * GM + (pid % (GM * cols)) % height
    pn = (pid % (GM * cols)) // height
    slot = tl.load(slot_ptr + pm * BM + tl.arange(0, BM)).to(tl.int64)
    live = slot < n_valid
    expert = tl.load(expert_ptr + pm).to(tl.int64)
    n = pn * BN + tl.arange(0, BN)
    cp = c_ptr + slot[:, None] * N + n[None, :]
    cm = live[:, None] & (n[None, :] < N)
    if expert == -1:
        tl.store(cp, tl.zeros((BM, BN), c_ptr.dtype.element_ty), mask=cm)
        return
    k = tl.arange(0, BK)
    row = slot // TOP_K
    wrapped = (n % N).to(tl.int64)
    ap = a_ptr + row[:, None] * K + k[None, :]
    bp = b_ptr + expert * N * K + wrapped[None, :] * K + k[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        a = tl.load(ap, mask=live[:, None] & (k[None, :] < K - k0), other=0.0)
        b = tl.load(bp, mask=k[:, None] < K - k0, other=0.0)
        if GROUP > 0:
            groups = tl.cdiv(K, GROUP)
            g = k0 // GROUP
            sa = tl.load(as_ptr + row * groups + g, mask=live, other=0.0)
            sb = tl.load(bs_ptr + (expert * tl.cdiv(N, GROUP) + wrapped // GROUP) * groups + g)
            acc += tl.dot(a, b) * sa[:, None] * sb[None, :]
        else:
            acc = tl.dot(a, b, acc)
        ap += BK
        bp += BK
    if WEIGH:
        acc *= tl.load(w_ptr + slot, mask=live, other=0.0)[:, None]
    tl.store(cp, acc.to(c_ptr.dtype.element_ty), mask=cm)


@triton.jit
def swiglu(x_ptr, o_ptr, F, BLOCK: tl.constexpr):
    """o[r, f] = silu(x[r, f]) * x[r, F + f]; x [R, 2F] bf16."""
    r = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = f < F
    gate = tl.load(x_ptr + r * 2 * F + f, mask=m, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + r * 2 * F + F + f, mask=m, other=0.0).to(tl.float32)
    tl.store(o_ptr + r * F + f, (gate * tl.sigmoid(gate) * up).to(tl.bfloat16), mask=m)


@triton.jit
def sum_slots(x_ptr, o_ptr, H, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """o[t] = sum over k of x[t * TOP_K + k]; x [T*TOP_K, H] bf16."""
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(TOP_K):
        acc += tl.load(x_ptr + (t * TOP_K + k) * H + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(o_ptr + t * H + h, acc.to(tl.bfloat16), mask=h < H)


@triton.jit
def route(x_ptr, id_ptr, w_ptr, count_ptr, E, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """The TOP_K largest logits of a row (lower expert first on ties), softmax over them, and a histogram of experts."""
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + t * E + e, mask=e < E, other=-float("inf"))
    top = tl.max(x, 0)
    total = 0.0
    for k in tl.static_range(TOP_K):
        best = tl.argmax(x, 0)
        p = tl.exp(tl.max(x, 0) - top)
        total += p
        tl.store(id_ptr + t * TOP_K + k, best)
        tl.store(w_ptr + t * TOP_K + k, p)
        tl.atomic_add(count_ptr + best, 1)
        x = tl.where(e == best, -float("inf"), x)
    tl.debug_barrier()
    k = tl.arange(0, 4)
    w = tl.load(w_ptr + t * TOP_K + k, mask=k < TOP_K, other=0.0)
    tl.store(w_ptr + t * TOP_K + k, w / total, mask=k < TOP_K)


@triton.jit
def attention(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, scale, N, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    """Flash attention, forward; q, k, v, o [heads, N, D], lse [heads, N] in base 2."""
    head = tl.program_id(1).to(tl.int64)
    m0 = tl.program_id(0) * BM
    m = m0 + tl.arange(0, BM)
    d = tl.arange(0, D)
    base = head * N * D
    q = tl.load(q_ptr + base + m[:, None] * D + d[None, :], mask=m[:, None] < N, other=0.0)
    top = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    end = min(m0 + BM, N) if CAUSAL else N
    for n0 in range(0, end, BN):
        n = n0 + tl.arange(0, BN)
        k = tl.load(k_ptr + base + n[None, :] * D + d[:, None], mask=n[None, :] < N, other=0.0)
        s = tl.dot(q, k) * (scale * 1.4426950408889634)
        keep = n[None, :] < N
        if CAUSAL:
            keep = keep & (m[:, None] >= n[None, :])
        s = tl.where(keep, s, -1.0e30)
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + base + n[:, None] * D + d[None, :], mask=n[:, None] < N, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = new
    acc = acc / total[:, None]
    tl.store(o_ptr + base + m[:, None] * D + d[None, :], acc.to(o_ptr.dtype.element_ty), mask=m[:, None] < N)
    tl.store(lse_ptr + head * N + m, top + tl.log2(total), mask=m < N)


@triton.jit
def attention_tma(q_desc, k_desc, v_desc, o_desc, scale, N, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WS: tl.constexpr):
    """As `attention`, without a mask, through tensor maps of [heads * N, D]; N is a multiple of BM and BN."""
    base = tl.program_id(1) * N
    m0 = base + tl.program_id(0) * BM
    q = q_desc.load([m0, 0])
    top = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for n0 in tl.range(0, N, BN, warp_specialize=WS):
        k = k_desc.load([base + n0, 0])
        s = tl.dot(q, k.T) * (scale * 1.4426950408889634)
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.sum(p, 1)
        v = v_desc.load([base + n0, 0])
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = new
    o_desc.store([m0, 0], (acc / total[:, None]).to(tl.float16))


@triton.jit
def layer_norm(x_ptr, g_ptr, b_ptr, o_ptr, mean_ptr, rstd_ptr, cols, eps, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    m = c < cols
    x = tl.load(x_ptr + r * cols + c, mask=m, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / cols
    y = tl.where(m, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(y * y, 0) / cols + eps)
    g = tl.load(g_ptr + c, mask=m, other=0.0)
    b = tl.load(b_ptr + c, mask=m, other=0.0)
    tl.store(o_ptr + r * cols + c, (y * rstd * g + b).to(o_ptr.dtype.element_ty), mask=m)
    tl.store(mean_ptr + r, mean)
    tl.store(rstd_ptr + r, rstd)


@triton.jit
def rms_norm_quant(x_ptr, res_ptr, g_ptr, q_ptr, s_ptr, cols, eps, BLOCK: tl.constexpr):
    """res += x; q = fp8(rms_norm(res) * g / s) with one scale a row."""
    r = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    m = c < cols
    x = tl.load(x_ptr + r * cols + c, mask=m, other=0.0).to(tl.float32) + tl.load(res_ptr + r * cols + c, mask=m, other=0.0)
    tl.store(res_ptr + r * cols + c, x, mask=m)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / cols + eps) * tl.load(g_ptr + c, mask=m, other=0.0)
    s = tl.maximum(tl.max(tl.abs(y), 0), 1.0e-10) / 448.0
    tl.store(s_ptr + r, s)
    tl.store(q_ptr + r * cols + c, tl.clamp(y / s, -448.0, 448.0).to(tl.float8e4nv), mask=m)


@triton.jit
def matmul_roles(a_desc, b_desc, c_desc, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, NPROG: tl.constexpr,
                 OUT: tl.constexpr):
    """Persistent matmul whose warps take roles: one partition loads, one multiplies, the rest store."""
    npm = tl.cdiv(M, BM)
    npn = tl.cdiv(N, BN)
    for t in tl.range(tl.program_id(0), npm * npn, NPROG, warp_specialize=True):
        om = (t % npm) * BM
        on = (t // npm) * BN
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for k in range(0, K, BK):
            acc = tl.dot(a_desc.load([om, k]), b_desc.load([on, k]).T, acc)
        c_desc.store([om, on], acc.to(OUT))


@triton.jit
def grouped_matmul(a_ptr, b_ptr, c_ptr, off_ptr, N, K, E: tl.constexpr, NPROG: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Rows off[e] .. off[e+1] of a times b[e]; NPROG programs share the tiles of all experts."""
    done = 0
    tile = tl.program_id(0)
    cols = tl.cdiv(N, BN)
    for e in range(E):
        first = tl.load(off_ptr + e)
        last = tl.load(off_ptr + e + 1)
        tiles = tl.cdiv(last - first, BM) * cols
        while tile < done + tiles:
            i = tile - done
            m = first + (i // cols) * BM + tl.arange(0, BM)
            n = (i % cols) * BN + tl.arange(0, BN)
            k = tl.arange(0, BK)
            acc = tl.zeros((BM, BN), tl.float32)
            for k0 in range(0, K, BK):
                a = tl.load(a_ptr + m[:, None] * K + (k0 + k)[None, :], mask=(m < last)[:, None], other=0.0)
                b = tl.load(b_ptr + e * K * N + (k0 + k)[:, None] * N + n[None, :], mask=(n < N)[None, :], other=0.0)
                acc = tl.dot(a, b, acc)
            tl.store(c_ptr + m[:, None] * N + n[None, :], acc.to(tl.bfloat16), mask=(m < last)[:, None] & (n < N)[None, :])
            tile += NPROG
        done += tiles


@triton.jit
def scale_tiles(x_ptr, o_ptr, sum_ptr, R, C, BM: tl.constexpr, BN: tl.constexpr):
    """o = 2x, sum += x (f32), through tensor maps that each program makes for itself in scratch memory."""
    x_desc = tl.make_tensor_descriptor(x_ptr, [R, C], [C, 1], [BM, BN])
    o_desc = tl.make_tensor_descriptor(o_ptr, [R, C], [C, 1], [BM, BN])
    sum_desc = tl.make_tensor_descriptor(sum_ptr, [BM, BN], [BN, 1], [BM, BN])
    r = tl.program_id(0) * BM
    for c in range(0, C, BN):
        x = x_desc.load([r, c])
        o_desc.store([r, c], x + x)
        sum_desc.atomic_add([0, 0], x)


@triton.jit
def scatter_rows(x_ptr, o_desc, row_ptr, BM: tl.constexpr, BN: tl.constexpr):
    """o[row[i], 32:32+BN] = x[i]."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    row = tl.load(row_ptr + i)
    o_desc.scatter(tl.load(x_ptr + i[:, None] * BN + tl.arange(0, BN)[None, :]), row, 32)
