"""Print digests of libllama's logits, to compare builds and settings bit for bit; run as a separate process.

Usage: digest.py MODEL.gguf THREADS [--as-run]
--as-run: with the cache and the attention that users get, instead of the exact ones
prints {"tier": ..., "prefill": ..., "decode": ...}, sha256 of the logits

A process selects its kernel tier only once (BITEXPORT_TIER), so each tier needs a separate process.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from bitexport.runtime.session import Session

TOKENS = 70


def main() -> None:
    with Session(
        sys.argv[1], n_ctx=256, n_threads=int(sys.argv[2]), exact="--as-run" not in sys.argv
    ) as session:
        ids = [int(token) for token in np.random.default_rng(0).integers(3, session.n_vocab, TOKENS)]
        prefill = session.logits(ids)
        session.clear()
        decode = np.stack([session.feed([token]) for token in ids])
        assert np.isfinite(prefill).all()
        assert np.abs(prefill).max() > 0
        print(
            json.dumps(
                {
                    "tier": session.tier,
                    "prefill": hashlib.sha256(prefill.tobytes()).hexdigest(),
                    "decode": hashlib.sha256(decode.tobytes()).hexdigest(),
                }
            )
        )


if __name__ == "__main__":
    main()
