"""Training in NumPy: the recipe in miniature.

    gradients  the vector-Jacobian product of every operation of the spec
    model      the whole model over a batch, forward and backward
    optim      AdamW, the learning rate, and the clipping of gradients
    corpus     documents and batches
    tokenizer  a small tokenizer of QwQ's kind
    nano       the small model: its config, its initial weights, its files
    sft        the two stages, base and cold start
    rollout    many answers at once

B, in the shape contracts of this package, is the number of sequences in a batch.
"""
