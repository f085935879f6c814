"""The data of a stage, from sources to micro-batches.

``loading`` reads, splits and tokenizes the sources of a configuration; ``bpe`` trains a tokenizer; ``tokens``
turns documents into one run of token ids; ``examples`` has the two kinds of example sets; ``batches`` decides
which examples every step sees.
"""
