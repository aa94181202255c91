"""Files to objects in memory: checkpoints, LoRAs, tokenizers, and their place in the model folders."""
