"""Continue a prompt greedily with the libllama in LLAMA_CPP_LIB_PATH; run as a separate process.

Usage: greedy.py MODEL.gguf TOKENS ID [ID ...]     prints the new ids as a JSON list

It only uses llama-cpp-python, so that the same code runs our build and an unpatched one.
"""

from __future__ import annotations

import json
import sys

import llama_cpp


def main() -> None:
    path, tokens, prompt = sys.argv[1], int(sys.argv[2]), [int(token) for token in sys.argv[3:]]
    model = llama_cpp.Llama(path, n_ctx=512, n_threads=1, logits_all=False, verbose=False)
    produced: list[int] = []
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        produced.append(int(token))
        if len(produced) == tokens:
            break
    print(json.dumps(produced))


if __name__ == "__main__":
    main()
