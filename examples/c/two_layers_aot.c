/* Two layers in one program, from what `moec compile --emit header,c` writes, without the runtime of moec.
 *
 *   moec compile models/mixtral --layer 0 --target cpu --emit header,c --prefix first -o first
 *   moec compile models/mixtral --layer 1 --target cpu --emit header,c --prefix second -o second
 *   moec pack first --weights models/mixtral -o first.safetensors        (and the same for `second`)
 *   cc -std=c11 two_layers_aot.c first/layer.c first/cpu/layer.o second/layer.c second/cpu/layer.o libmoec_kernels.a -I . \
 *      -pthread -ldl -lm
 *   ./a.out first.safetensors second.safetensors < input.f32 > output.f32
 *
 * Standard input has rows of FIRST_HIDDEN floats; standard output gets those of the first layer, then those of the second on
 * the same input.
 */
#include "first/layer.h"
#include "second/layer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_THREADS = 2, MOST = 64 };

/* --- Threads: each call makes them anew, which a real host would not. ----------------------------------------------- */

struct share {
  moec_aot_items items;
  void *work;
  uint64_t begin, end;
  uint32_t thread;
};

static void *do_share(void *argument) {
  const struct share *s = (const struct share *)argument;
  if (s->begin < s->end) s->items(s->work, s->begin, s->end, s->thread);
  return NULL;
}

static void run(void *pool, moec_aot_items items, void *work, uint64_t n_items) {
  pthread_t threads[N_THREADS];
  struct share shares[N_THREADS];
  (void)pool;
  for (uint32_t t = 0; t < N_THREADS; t++) {
    const struct share s = {items, work, n_items * t / N_THREADS, n_items * (t + 1) / N_THREADS, t};
    shares[t] = s;
    if (pthread_create(&threads[t], NULL, do_share, &shares[t]) != 0) abort();
  }
  for (uint32_t t = 0; t < N_THREADS; t++) pthread_join(threads[t], NULL);
}

/* --- Weights: the data of a safetensors file, found by name. -------------------------------------------------------- */

struct file {
  char *header;
  unsigned char *data;
};

static struct file read_file(const char *path) {
  struct file f = {NULL, NULL};
  uint64_t n = 0;
  FILE *in = fopen(path, "rb");
  if (in == NULL || fread(&n, 8, 1, in) != 1) abort();
  fseek(in, 0, SEEK_END);
  const size_t rest = (size_t)ftell(in) - 8 - n;
  fseek(in, 8, SEEK_SET);
  f.header = (char *)calloc(n + 1, 1);
  f.data = (unsigned char *)malloc(rest + 1);
  if (f.header == NULL || f.data == NULL) abort();
  if (fread(f.header, 1, n, in) != n || fread(f.data, 1, rest, in) != rest) abort();
  fclose(in);
  return f;
}

static const void *tensor(const struct file *f, const char *name) {
  char key[64];
  snprintf(key, sizeof key, "\"%s\":", name);
  const char *entry = strstr(f->header, key);
  const char *offsets = entry == NULL ? NULL : strstr(entry, "\"data_offsets\":[");
  if (offsets == NULL) {
    fprintf(stderr, "no weight %s\n", name);
    exit(1);
  }
  return f->data + strtoull(offsets + 16, NULL, 10);
}

static void must(int status, const char *what) {
  if (status == MOEC_AOT_OK) return;
  fprintf(stderr, "%s: error %d\n", what, status);
  exit(1);
}

int main(int argc, char **argv) {
  static float input[MOST][FIRST_HIDDEN], output[MOST][FIRST_HIDDEN], shares[MOST][FIRST_TOP_K];
  static int32_t ids[MOST][FIRST_TOP_K];
  if (argc != 3 || FIRST_HIDDEN != SECOND_HIDDEN) return 2;
  const uint64_t n_tokens = fread(input, sizeof input[0], MOST, stdin);
  const struct file a = read_file(argv[1]), b = read_file(argv[2]);
  const struct moec_aot_threads threads = {N_THREADS, NULL, run};

  struct first_tensors first = {0};
  first.input = input;
  first.output = output;
  first.topk_ids = ids;
  first.topk_weights = shares;
  first.router_weight = tensor(&a, "router.weight");
  first.experts_gate = tensor(&a, "experts.gate");
  first.experts_up = tensor(&a, "experts.up");
  first.experts_down = tensor(&a, "experts.down");
  uint64_t bytes = first_workspace_bytes(n_tokens, N_THREADS);
  void *workspace = malloc(bytes);
  must(first_launch(&first, n_tokens, workspace, bytes, &threads), "first");
  if (fwrite(output, sizeof output[0], n_tokens, stdout) != n_tokens) return 1;
  free(workspace);

  /* On the caller's thread alone, this time. */
  struct second_tensors second = {0};
  second.input = input;
  second.output = output;
  second.topk_ids = ids;
  second.topk_weights = shares;
  second.router_weight = tensor(&b, "router.weight");
  second.experts_gate = tensor(&b, "experts.gate");
  second.experts_up = tensor(&b, "experts.up");
  second.experts_down = tensor(&b, "experts.down");
  bytes = second_workspace_bytes(n_tokens, 1);
  workspace = malloc(bytes);
  must(second_launch(&second, n_tokens, workspace, bytes, NULL), "second");
  if (fwrite(output, sizeof output[0], n_tokens, stdout) != n_tokens) return 1;

  /* What is wrong is said, and nothing is touched. */
  if (second_launch(&second, n_tokens, workspace, bytes - 1, NULL) != MOEC_AOT_WORKSPACE_TOO_SMALL) return 1;
  if (second_launch(&second, UINT64_C(1) << 40, workspace, bytes, NULL) != MOEC_AOT_TOO_MANY_TOKENS) return 1;
  second.experts_up = NULL;
  if (second_launch(&second, n_tokens, workspace, bytes, NULL) != MOEC_AOT_NULL) return 1;
  free(workspace);
  free(a.header);
  free(a.data);
  free(b.header);
  free(b.data);
  return 0;
}
