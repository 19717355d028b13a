"""llama.cpp: bindings, captured tensors, and files of weights for it."""
