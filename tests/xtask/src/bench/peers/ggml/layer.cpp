// One layer of experts in ggml, in the operations that llama.cpp makes of it: ggml_mul_mat_id for gate, up and down.
//
// ggml_layer FORMAT E K H I OAI SCALE THREADS FOLDER TYPE: weights of FORMAT from FOLDER (see weights.py) in ggml's TYPE. It prints `ready`
// and answers lines as turns.py says; the file of a turn is what turn.py writes.
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

using Bytes = std::vector<uint8_t>;

[[noreturn]] static void fail(const std::string & why) {
    std::cerr << why << '\n';
    std::exit(1);
}

static Bytes read_file(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail("cannot read " + path);
    return Bytes(std::istreambuf_iterator<char>(file), {});
}

static float bf16(const uint8_t * at) {
    ggml_bf16_t half;
    std::memcpy(&half, at, sizeof half);
    return ggml_bf16_to_fp32(half);
}

// FP8 with four bits of exponent; codes are no NaN.
static float e4m3(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float size = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
    return code & 128 ? -size : size;
}

// `n` codes of four bits, neighbours in a byte, as ggml has them: the first half of a block in low nibbles, the second in high ones.
static void put_nibbles(const uint8_t * from, int n, uint8_t * to) {
    const auto nibble = [&](int i) { return from[i / 2] >> 4 * (i % 2) & 15; };
    for (int i = 0; i < n / 2; i++) to[i] = nibble(i) | nibble(i + n / 2) << 4;
}

static void put_f16(float value, uint8_t * to) {
    const ggml_fp16_t half = ggml_fp32_to_fp16(value);
    std::memcpy(to, &half, sizeof half);
}

struct Sizes {
    int64_t experts, top_k, hidden, ffn;
    bool oai;
};

// Makes a row of ggml's out of a row of codes or floats, and the row of scales that goes with it.
using PutRow = void (*)(const uint8_t * codes, const uint8_t * scales, int64_t cols, uint8_t * to);

static void put_bf16(const uint8_t * floats, const uint8_t *, int64_t cols, uint8_t * to) { std::memcpy(to, floats, 2 * cols); }

static void put_f32(const uint8_t * floats, const uint8_t *, int64_t cols, uint8_t * to) { std::memcpy(to, floats, 4 * cols); }

// Other codes than those of FP8, of as many bits: the nearest.
static void put_q8_0(const uint8_t * codes, const uint8_t * scales, int64_t cols, uint8_t * to) {
    static const std::vector<float> values = [] {
        std::vector<float> all(256);
        for (int code = 0; code < 256; code++) all[code] = e4m3(code);
        return all;
    }();
    std::vector<float> row(cols);
    for (int64_t k = 0; k < cols; k++) {
        float scale;
        std::memcpy(&scale, scales + k / 128 * sizeof scale, sizeof scale);
        row[k] = values[codes[k]] * scale;
    }
    ggml_quantize_chunk(GGML_TYPE_Q8_0, row.data(), to, 0, 1, cols, nullptr);
}

// Scale and nibbles by turns; the scale's byte means the same.
static void put_mxfp4(const uint8_t * codes, const uint8_t * scales, int64_t cols, uint8_t * to) {
    for (int64_t block = 0; block < cols / 32; block++, codes += 16, to += 17) {
        to[0] = scales[block];
        put_nibbles(codes, 32, to + 1);
    }
}

// Four scales, then the nibbles of four blocks.
static void put_nvfp4(const uint8_t * codes, const uint8_t * scales, int64_t cols, uint8_t * to) {
    for (int64_t four = 0; four < cols / 64; four++, scales += 4, to += 36) {
        std::memcpy(to, scales, 4);
        for (int block = 0; block < 4; block++, codes += 8) put_nibbles(codes, 16, to + 4 + 8 * block);
    }
}

// (nibble - 8) * scale.
static void put_q4_0(const uint8_t * codes, const uint8_t * scales, int64_t cols, uint8_t * to) {
    for (int64_t block = 0; block < cols / 32; block++, codes += 16, to += 18) {
        put_f16(bf16(scales + 2 * block), to);
        put_nibbles(codes, 32, to + 2);
    }
}

// nibble * scale + minimum.
static void put_q4_1(const uint8_t * codes, const uint8_t * scales, int64_t cols, uint8_t * to) {
    for (int64_t block = 0; block < cols / 32; block++, codes += 16, to += 20) {
        const float scale = bf16(scales + 2 * block);
        put_f16(scale, to);
        put_f16(-8 * scale, to + 2);
        put_nibbles(codes, 32, to + 4);
    }
}

// What of a format can be had in ggml.
struct Coding {
    const char * format;
    const char * name;
    ggml_type type;
    double element_bytes;
    int block_rows, block_cols, scale_bytes;
    PutRow put;
};

static const Coding CODINGS[] = {
    {"bf16", "bf16", GGML_TYPE_BF16, 2, 1, 1, 0, put_bf16},
    {"f32", "f32", GGML_TYPE_F32, 4, 1, 1, 0, put_f32},
    {"fp8", "q8_0", GGML_TYPE_Q8_0, 1, 128, 128, 4, put_q8_0},
    {"mxfp4", "mxfp4", GGML_TYPE_MXFP4, 0.5, 1, 32, 1, put_mxfp4},
    {"nvfp4", "nvfp4", GGML_TYPE_NVFP4, 0.5, 1, 16, 1, put_nvfp4},
    {"int4", "q4_0", GGML_TYPE_Q4_0, 0.5, 1, 32, 2, put_q4_0},
    {"int4", "q4_1", GGML_TYPE_Q4_1, 0.5, 1, 32, 2, put_q4_1},
};

// All experts' matrices: expert `e` has the rows of the files moved up by `e`.
static Bytes matrices(const Coding & coding, const std::string & path, int64_t experts, int64_t rows, int64_t cols) {
    const Bytes codes = read_file(path);
    const Bytes scales = coding.scale_bytes ? read_file(path + "_scale") : Bytes();
    const int64_t code_row = coding.element_bytes * cols;
    const int64_t scale_row = (cols + coding.block_cols - 1) / coding.block_cols * coding.scale_bytes;
    const int64_t scale_rows = (rows + coding.block_rows - 1) / coding.block_rows;
    const int64_t to_row = ggml_row_size(coding.type, cols);
    if ((int64_t) codes.size() != rows * code_row || (int64_t) scales.size() != scale_rows * scale_row) fail(path + " has another size");
    Bytes out(experts * rows * to_row);
    for (int64_t e = 0; e < experts; e++) {
        for (int64_t row = 0; row < rows; row++) {
            const uint8_t * scale = scales.data() + (row / coding.block_rows + e) % scale_rows * scale_row;
            coding.put(codes.data() + (row + e) % rows * code_row, scale, cols, out.data() + (e * rows + row) * to_row);
        }
    }
    return out;
}

struct Layer {
    Sizes sizes;
    ggml_tensor *gate, *up, *down;
    ggml_tensor *gate_bias, *up_bias, *down_bias;
};

static ggml_context * context(int tensors) {
    return ggml_init({ggml_tensor_overhead() * tensors + ggml_graph_overhead(), nullptr, true});
}

// Memory as llama.cpp chooses it: an arrangement of the CPU's own, where there is one for products of experts with such weights.
static ggml_backend_buffer_type_t buffer_type(ggml_backend_t backend, ggml_tensor * weights) {
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    const auto extras = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    ggml_context * ctx = context(4);
    ggml_tensor * x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, weights->ne[0], 1, 512);
    ggml_tensor * ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 1, 512);
    ggml_tensor * product = ggml_mul_mat_id(ctx, weights, x, ids);
    ggml_backend_buffer_type_t found = ggml_backend_cpu_buffer_type();
    for (auto * type = extras ? extras(device) : nullptr; type && *type; type++) {
        weights->buffer = ggml_backend_buft_alloc_buffer(*type, 0);
        const bool supported = ggml_backend_dev_supports_op(device, product);
        ggml_backend_buffer_free(weights->buffer);
        weights->buffer = nullptr;
        if (supported) {
            found = *type;
            break;
        }
    }
    ggml_free(ctx);
    return found;
}

static ggml_tensor * load(ggml_backend_t backend, const Coding & coding, const Sizes & s, const std::string & path, int64_t rows, int64_t cols) {
    ggml_context * ctx = context(1);
    ggml_tensor * weights = ggml_new_tensor_3d(ctx, coding.type, cols, rows, s.experts);
    ggml_backend_buffer_type_t type = buffer_type(backend, weights);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, type);
    if (!buffer) fail("no memory for " + path);
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    const Bytes bytes = matrices(coding, path, s.experts, rows, cols);
    ggml_backend_tensor_set(weights, bytes.data(), 0, bytes.size());
    std::cerr << path << " lies in " << ggml_backend_buft_name(type) << '\n';
    return weights;
}

// In float32 beside weights in float32, in bfloat16 beside all others.
static ggml_tensor * load_bias(const Coding & coding, const Sizes & s, const std::string & path, int64_t rows) {
    ggml_context * ctx = context(1);
    ggml_tensor * bias = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, rows, s.experts);
    ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_buffer_type());
    const Bytes bytes = read_file(path);
    std::vector<float> base(rows), values(s.experts * rows);
    if (coding.type == GGML_TYPE_F32) {
        if (bytes.size() != rows * sizeof(float)) fail(path + " has another size");
        std::memcpy(base.data(), bytes.data(), bytes.size());
    } else {
        if (bytes.size() != rows * sizeof(ggml_bf16_t)) fail(path + " has another size");
        for (int64_t row = 0; row < rows; row++) base[row] = bf16(bytes.data() + row * sizeof(ggml_bf16_t));
    }
    for (int64_t e = 0; e < s.experts; e++)
        for (int64_t row = 0; row < rows; row++) values[e * rows + row] = base[(row + e) % rows];
    ggml_backend_tensor_set(bias, values.data(), 0, values.size() * sizeof(float));
    return bias;
}

// The layer for one number of tokens.
struct Graph {
    ggml_cgraph * graph;
    ggml_tensor *x, *ids, *weights, *out;
};

static Graph build(const Layer & layer, int64_t n_tokens) {
    const Sizes & s = layer.sizes;
    ggml_context * ctx = context(64);
    Graph g;
    g.x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, s.hidden, 1, n_tokens);
    g.ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, s.top_k, n_tokens);
    g.weights = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 1, s.top_k, n_tokens);
    for (ggml_tensor * input : {g.x, g.ids, g.weights}) ggml_set_input(input);
    const auto product = [&](ggml_tensor * weights, ggml_tensor * bias, ggml_tensor * rows) {
        ggml_tensor * y = ggml_mul_mat_id(ctx, weights, rows, g.ids);
        return bias ? ggml_add_id(ctx, y, bias, g.ids) : y;
    };
    ggml_tensor * up = product(layer.up, layer.up_bias, g.x);
    ggml_tensor * gate = product(layer.gate, layer.gate_bias, g.x);
    ggml_tensor * middle = s.oai ? ggml_swiglu_oai(ctx, gate, up, 1.702f, 7.0f) : ggml_swiglu_split(ctx, gate, up);
    ggml_tensor * slots = ggml_mul(ctx, product(layer.down, layer.down_bias, middle), g.weights);
    for (int64_t k = 0; k < s.top_k; k++) {
        ggml_tensor * slot = ggml_view_2d(ctx, slots, s.hidden, n_tokens, slots->nb[2], k * slots->nb[1]);
        g.out = k ? ggml_add(ctx, g.out, slot) : slot;
    }
    ggml_set_output(g.out);
    g.graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(g.graph, g.out);
    ggml_gallocr_t memory = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
    if (!ggml_gallocr_alloc_graph(memory, g.graph)) fail("no memory for the graph");
    return g;
}

static double processor() {
    rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + 1e-6 * (used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

int main(int argc, char ** argv) {
    if (argc != 11) fail("ggml_layer FORMAT E K H I OAI SCALE THREADS FOLDER TYPE");
    const std::string format = argv[1], folder = argv[9], name = argv[10];
    const Sizes s{std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4]), std::atoll(argv[5]), argv[6][0] == '1'};
    const int threads = std::atoi(argv[8]);
    const Coding * coding = nullptr;
    for (const Coding & c : CODINGS)
        if (format == c.format && name == c.name) coding = &c;
    if (!coding) fail("no " + name + " for " + format);

    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, threads);
    // Threads that stay, as those of llama.cpp's own programs.
    ggml_threadpool_params pool = ggml_threadpool_params_default(threads);
    ggml_backend_cpu_set_threadpool(backend, ggml_threadpool_new(&pool));
    Layer layer{s};
    layer.gate = load(backend, *coding, s, folder + "/gate", s.ffn, s.hidden);
    layer.up = load(backend, *coding, s, folder + "/up", s.ffn, s.hidden);
    layer.down = load(backend, *coding, s, folder + "/down", s.hidden, s.ffn);
    if (s.oai) {
        layer.gate_bias = load_bias(*coding, s, folder + "/gate_bias", s.ffn);
        layer.up_bias = load_bias(*coding, s, folder + "/up_bias", s.ffn);
        layer.down_bias = load_bias(*coding, s, folder + "/down_bias", s.hidden);
    }
    std::cout << "ready" << std::endl;

    std::map<int64_t, Graph> graphs;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        int64_t n_tokens;
        std::string inputs, result;
        words >> n_tokens >> inputs >> result;
        if (!graphs.count(n_tokens)) graphs[n_tokens] = build(layer, n_tokens);
        const Graph & g = graphs[n_tokens];
        const Bytes turn = read_file(inputs);
        size_t at = 0;
        const auto take = [&](ggml_tensor * tensor) {
            if (at + ggml_nbytes(tensor) > turn.size()) fail(inputs + " is too short");
            ggml_backend_tensor_set(tensor, turn.data() + at, 0, ggml_nbytes(tensor));
            at += ggml_nbytes(tensor);
        };
        take(g.x);
        at += n_tokens * s.experts * sizeof(float);  // the logits
        take(g.ids);
        take(g.weights);
        const double cpu_before = processor();
        const auto start = std::chrono::steady_clock::now();
        if (ggml_backend_graph_compute(backend, g.graph) != GGML_STATUS_SUCCESS) fail("the graph was not computed");
        const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
        const double cpu = (processor() - cpu_before) / threads;
        if (result != "-") {
            std::vector<char> out(ggml_nbytes(g.out));
            ggml_backend_tensor_get(g.out, out.data(), 0, out.size());
            std::ofstream(result, std::ios::binary).write(out.data(), out.size());
        }
        std::printf("%.9f %.9f\n", wall.count(), cpu);
        std::fflush(stdout);
    }
}
