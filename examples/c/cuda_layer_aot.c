/* A layer on a GPU, from what `moec compile --emit header,c` writes, without the runtime of moec and without cuda.h.
 *
 *   moec compile models/mixtral --layer 0 --target sm_90a --emit header,c --prefix layer -o layer
 *   moec pack layer --target sm_90a --weights models/mixtral -o layer.safetensors
 *   cc -std=c11 -DTARGET=sm_90a cuda_layer_aot.c layer/layer.c -I . -ldl
 *   ./a.out layer.safetensors < input.bf16 > output.bf16
 *
 * Standard input has rows of HIDDEN bf16 numbers, one for each token; standard output gets as many.
 */
#include "layer/layer.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOIN(a, b, c) a##b##c
#define NAME(a, b, c) JOIN(a, b, c)
#define LAYER(rest) NAME(layer_, TARGET, rest)

enum { MOST = 64 };

static void must(int status, const char *what) {
  if (status == 0) return;
  fprintf(stderr, "%s: error %d\n", what, status);
  exit(1);
}

/* --- The driver. ---------------------------------------------------------------------------------------------------- */

static void *library;

/* POSIX gives functions as `void *`. */
static void find(const char *name, void *to, size_t bytes) {
  void *found = dlsym(library, name);
  if (found == NULL) {
    fprintf(stderr, "the driver has no %s\n", name);
    exit(1);
  }
  memcpy(to, &found, bytes);
}

#define FIND(field, name) find(name, (void *)&(field), sizeof(field))

static int (*init)(unsigned), (*retain)(void **, int), (*push)(void *), (*allocate)(uint64_t *, size_t), (*give_back)(uint64_t);
static int (*upload)(uint64_t, const void *, size_t), (*download)(void *, uint64_t, size_t), (*release)(int);
static int (*new_stream)(void **, unsigned), (*wait_for)(void *), (*end_stream)(void *);

static struct moec_cuda driver(void) {
  struct moec_cuda cuda;
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
  FIND(init, "cuInit");
  FIND(retain, "cuDevicePrimaryCtxRetain");
  FIND(release, "cuDevicePrimaryCtxRelease_v2");
  FIND(push, "cuCtxPushCurrent_v2");
  FIND(allocate, "cuMemAlloc_v2");
  FIND(give_back, "cuMemFree_v2");
  FIND(upload, "cuMemcpyHtoD_v2");
  FIND(download, "cuMemcpyDtoH_v2");
  FIND(new_stream, "cuStreamCreate");
  FIND(wait_for, "cuStreamSynchronize");
  FIND(end_stream, "cuStreamDestroy_v2");
  FIND(cuda.ctx_get_device, "cuCtxGetDevice");
  FIND(cuda.device_get_attribute, "cuDeviceGetAttribute");
  FIND(cuda.module_load_data, "cuModuleLoadData");
  FIND(cuda.module_unload, "cuModuleUnload");
  FIND(cuda.module_get_function, "cuModuleGetFunction");
  FIND(cuda.func_set_attribute, "cuFuncSetAttribute");
  FIND(cuda.occupancy_max_active_clusters, "cuOccupancyMaxActiveClusters");
  FIND(cuda.memset_d32_async, "cuMemsetD32Async");
  FIND(cuda.tensor_map_encode_tiled, "cuTensorMapEncodeTiled");
  FIND(cuda.launch_kernel_ex, "cuLaunchKernelEx");
  return cuda;
}

static uint64_t on_gpu(const void *from, size_t bytes) {
  uint64_t at = 0;
  must(allocate(&at, bytes), "allocate");
  if (from != NULL) must(upload(at, from, bytes), "upload");
  return at;
}

/* --- Weights: the data of a safetensors file, found by name. -------------------------------------------------------- */

static char *header;
static unsigned char *data;

static void read_file(const char *path) {
  uint64_t n = 0;
  FILE *in = fopen(path, "rb");
  if (in == NULL || fread(&n, 8, 1, in) != 1) abort();
  fseek(in, 0, SEEK_END);
  const size_t rest = (size_t)ftell(in) - 8 - n;
  fseek(in, 8, SEEK_SET);
  header = (char *)calloc(n + 1, 1);
  data = (unsigned char *)malloc(rest + 1);
  if (header == NULL || data == NULL) abort();
  if (fread(header, 1, n, in) != n || fread(data, 1, rest, in) != rest) abort();
  fclose(in);
}

static uint64_t weight(const char *name) {
  char key[64];
  snprintf(key, sizeof key, "\"%s\":", name);
  const char *entry = strstr(header, key);
  const char *offsets = entry == NULL ? NULL : strstr(entry, "\"data_offsets\":[");
  char *end = NULL;
  if (offsets == NULL) exit(1);
  const uint64_t from = strtoull(offsets + 16, &end, 10), to = strtoull(end + 1, NULL, 10);
  return on_gpu(data + from, to - from);
}

int main(int argc, char **argv) {
  static uint16_t input[MOST][LAYER_HIDDEN], output[MOST][LAYER_HIDDEN];
  if (argc != 2) return 2;
  const uint64_t n_tokens = fread(input, sizeof input[0], MOST, stdin);
  read_file(argv[1]);
  const struct moec_cuda cuda = driver();
  void *context = NULL, *stream = NULL;
  must(init(0), "init");
  must(retain(&context, 0), "context");
  must(push(context), "context");
  must(new_stream(&stream, 1), "stream");

  struct LAYER(_loaded) layer;
  must(LAYER(_load)(&layer, &cuda), "load");
  struct LAYER(_tensors) t;
  t.input = on_gpu(input, sizeof input);
  t.output = on_gpu(NULL, sizeof output);
  t.topk_ids = on_gpu(NULL, sizeof(int32_t) * MOST * LAYER_TOP_K);
  t.topk_weights = on_gpu(NULL, sizeof(float) * MOST * LAYER_TOP_K);
  t.router_weight = weight("router.weight");
  t.experts_gate = weight("experts.gate");
  t.experts_up = weight("experts.up");
  t.experts_down = weight("experts.down");
  const uint64_t bytes = LAYER(_workspace_bytes)(n_tokens);
  const uint64_t workspace = on_gpu(NULL, bytes);
  must(LAYER(_launch)(&layer, &t, n_tokens, workspace, bytes, stream), "launch");
  must(wait_for(stream), "wait");
  must(download(output, t.output, sizeof output[0] * n_tokens), "download");
  if (fwrite(output, sizeof output[0], n_tokens, stdout) != n_tokens) return 1;

  /* What is wrong is said before anything is launched. */
  if (LAYER(_launch)(&layer, &t, n_tokens, workspace, bytes - 1, stream) != MOEC_AOT_WORKSPACE_TOO_SMALL) return 1;
  if (LAYER(_launch)(&layer, &t, UINT64_C(1) << 40, workspace, bytes, stream) != MOEC_AOT_TOO_MANY_TOKENS) return 1;
  t.input += 4;
  if (LAYER(_launch)(&layer, &t, n_tokens, workspace, bytes, stream) != MOEC_AOT_MISALIGNED) return 1;
  t.input = 0;
  if (LAYER(_launch)(&layer, &t, n_tokens, workspace, bytes, stream) != MOEC_AOT_NULL) return 1;

  LAYER(_unload)(&layer);
  const uint64_t all[] = {t.output, t.topk_ids, t.topk_weights, t.router_weight, t.experts_gate, t.experts_up, t.experts_down, workspace};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) must(give_back(all[i]), "free");
  must(end_stream(stream), "stream");
  must(release(0), "context");
  free(header);
  free(data);
  return 0;
}
