"""The image side: networks and their tensor mathematics, free of ComfyUI."""
