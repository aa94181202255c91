"""Files to objects in memory, and what is hung on ComfyUI's models: LoRAs, positions, references, caches."""
