// The norms of one layer in front of single linear layers, blk.N.X_norm_in; null where there is none.
#pragma once

struct ggml_tensor;

struct input_norms {
    ggml_tensor * q    = nullptr;
    ggml_tensor * k    = nullptr;
    ggml_tensor * v    = nullptr;
    ggml_tensor * out  = nullptr;
    ggml_tensor * gate = nullptr;
    ggml_tensor * up   = nullptr;
    ggml_tensor * down = nullptr;
};
