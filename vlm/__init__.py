"""The language side: instructions and pictures in, prompts and hidden states out."""
