// Clears a new buffer without touching its memory.
#pragma once

#include "ggml-backend.h"

// Sets all bytes of a buffer that ggml allocated itself to 0, as ggml_backend_buffer_clear does. Of a large one in this
// process's own memory the pages are given back instead: the system hands out zeros when they are next used. So a cache for
// 4,096 tokens takes neither the time nor the memory of those that are not there yet.
void bitexport_clear_buffer(ggml_backend_buffer_t buffer);
