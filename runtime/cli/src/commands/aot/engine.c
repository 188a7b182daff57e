/* From here on the text is the same for every layer. */

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
