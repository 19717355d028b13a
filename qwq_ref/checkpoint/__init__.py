"""Files -> named arrays: safetensors, sharded checkpoints, and the Hugging Face cache."""
