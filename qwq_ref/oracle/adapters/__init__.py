"""Candidates: the tensors under test, from files, from a torch model, or from llama.cpp."""
