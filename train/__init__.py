"""Training ternary language models: the slim side of bitexport.

transformers' Trainer does the training and transformers' own BitNet layers quantize while it does. What is
ours is the text, the tokenizer, the configuration and the export to a packed checkpoint.
``python -m train --help`` lists the commands.
"""
