#include "threads.h"

ggml_threadpool * bitexport_new_threads(int count) {
    ggml_threadpool_params params = ggml_threadpool_params_default(count);
    // How long a thread looks for the next graph before it sleeps: some 5 to 20 milliseconds here, more than a program
    // needs between two tokens. ggml's own choice, ten times that, keeps a processor busy after the last token.
    params.poll = 5;
    return ggml_threadpool_new(&params);
}
