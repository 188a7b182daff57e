/* From here on the text is the same for every layer. */

typedef void (*moec_function)(const struct moec_context *context, uint64_t begin, uint64_t end);

/* One kernel's work, as threads get it. */
struct moec_work {
  moec_function function;
  struct moec_context context;
  uint64_t scratch_stride;
};

static uint64_t moec_aligned(uint64_t n) { return (n + 255u) / 256u * 256u; }

/* mul * (ceil(per_token * T / div) + min(add, per_token * T)), at least min */
static uint64_t moec_extent_at(const struct moec_aot_extent *e, uint64_t n_tokens) {
  const uint64_t rows = e->per_token * n_tokens;
  const uint64_t tiles = rows / e->div + (rows % e->div != 0) + (e->add < rows ? e->add : rows);
  const uint64_t n = e->mul * tiles;
  return n > e->min ? n : e->min;
}

static uint64_t moec_bytes(const struct moec_aot_buffer *b, uint64_t n_tokens) {
  return b->batch * (b->rows + b->rows_per_token * n_tokens) * b->pitch * b->elem_bytes;
}

/* Where workspace buffers lie: each at the lowest multiple of 256 where it meets none that is alive at the same time. The
   result is the size of all. */
static uint64_t moec_layout(const struct moec_aot_variant *v, uint64_t n_tokens, uint64_t *offsets) {
  uint64_t end = 0;
  for (uint32_t i = 0; i < v->n_buffers; i++) {
    const struct moec_aot_buffer *b = &v->buffers[i];
    offsets[i] = 0;
    if (b->role != MOEC_AOT_WORKSPACE) continue;
    const uint64_t bytes = moec_bytes(b, n_tokens);
    uint64_t start = 0;
    for (uint32_t j = 0; j < i;) {
      const struct moec_aot_buffer *other = &v->buffers[j];
      const uint64_t from = offsets[j], to = from + moec_bytes(other, n_tokens);
      const int alive = !v->overlay || (other->first <= b->last && b->first <= other->last);
      if (other->role == MOEC_AOT_WORKSPACE && alive && start < to && from < start + bytes) {
        start = moec_aligned(to);
        j = 0;
      } else {
        j++;
      }
    }
    offsets[i] = start;
    if (start + bytes > end) end = start + bytes;
  }
  return moec_aligned(end);
}

static const struct moec_aot_variant *moec_variant(const struct moec_aot_target *t, uint64_t n_tokens) {
  for (uint32_t i = 0; i < t->n_variants; i++) {
    if (n_tokens <= t->variants[i].max_tokens) return &t->variants[i];
  }
  return 0;
}

static uint64_t moec_scratch(const struct moec_aot_variant *v) {
  uint64_t most = 256;
  for (uint32_t k = 0; k < v->n_kernels; k++) {
    if (v->kernels[k].scratch_bytes > most) most = v->kernels[k].scratch_bytes;
  }
  return moec_aligned(most);
}

static void moec_run_items(void *work, uint64_t begin, uint64_t end, uint32_t thread) {
  const struct moec_work *w = (const struct moec_work *)work;
  struct moec_context context = w->context;
  context.scratch += thread * w->scratch_stride;
  w->function(&context, begin, end);
}

/* What generated code calls; computed in double and rounded once, as moec's own runtime does. */
static float moec_exp(float x) { return (float)exp((double)x); }
static float moec_softplus(float x) {
  const double d = (double)x;
  return x != x ? x : (float)((d > 0 ? d : 0) + log1p(exp(-fabs(d))));
}
static float moec_tanh(float x) { return (float)tanh((double)x); }
static float moec_erf(float x) { return (float)erf((double)x); }
static float moec_pow(float x, float y) { return (float)pow((double)x, (double)y); }

static const struct moec_math moec_functions = {moec_exp, moec_softplus, moec_tanh, moec_erf, moec_pow};
